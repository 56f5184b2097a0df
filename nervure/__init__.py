"""Nervure: PyTorch networks made smaller and faster by their connectivity."""
