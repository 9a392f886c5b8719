"""Agent files and exact checkpoints: JSON and tensors, no pickle."""
