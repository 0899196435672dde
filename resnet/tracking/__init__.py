"""What is told of a run while it trains: W&B, the progress bar, the watchdog, the profiler."""
