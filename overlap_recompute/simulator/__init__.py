"""Cost model, event loop and timeline: what a run would do, without running it (docs/simulator.md)."""
