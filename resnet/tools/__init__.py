"""What one does with a run: each tool is a function that returns a value, and a command that prints it."""
