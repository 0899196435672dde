"""The files of a run directory: their names, formats, readers and writers. Standard library only."""
