"""Measures a profile in a run: units, windows, passes, links and the update (docs/profile.md)."""
