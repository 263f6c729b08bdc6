"""Decides what to keep, what to recompute and where, for a memory budget (docs/planner.md)."""
