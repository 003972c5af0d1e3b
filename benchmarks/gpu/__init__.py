"""Training and inference on a GPU, in one command that keeps to its time and goes on where it was stopped."""
