"""Process groups, the watch over all ranks, and how a run ends when something fails.

`failure`, `verdict`, `liveness` and what they build on use the standard library only, so the entry point can guard a
run before torch is imported. See docs/faults.md.
"""
