"""Recompute ahead of need for Megatron-Core: units of its layers, windows of its collectives (docs/overlap.md)."""
