"""Sweeps: from values to trials, where they run, and what they found."""
