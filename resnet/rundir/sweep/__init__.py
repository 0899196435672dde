"""What a sweep's directory says, and what its trials have come to. Standard library only."""
