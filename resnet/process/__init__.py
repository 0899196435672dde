"""The process that trains: its signals, ranks, cores, exit codes and streams. Standard library only."""
