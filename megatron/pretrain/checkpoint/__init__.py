"""Checkpoints: atomic sharded saves, exact resume, and loading at another parallel layout (docs/checkpoints.md)."""
