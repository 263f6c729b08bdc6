"""Counts what a model keeps, with fake tensors: any layout, any size, on any machine (docs/memory.md)."""
