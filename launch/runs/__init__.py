"""Runs as the launcher sees them: their true state, their logs, and how they are started here or sent."""
