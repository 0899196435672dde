"""Pages of many runs: a comparison, a sweep, and all runs of a folder."""
