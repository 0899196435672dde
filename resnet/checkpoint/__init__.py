"""Checkpoints: what they hold, how they are committed, and how a run resumes from them."""
