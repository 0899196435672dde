"""What a trained network becomes outside of training: files for other programs, smaller and faster networks."""
