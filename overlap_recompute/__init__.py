"""Overlapped activation recomputation for large-model training on Megatron-Core."""

__version__ = "0.1.0"
