"""The typed recipe: every key a run can be given, with its unit, meaning and default."""
