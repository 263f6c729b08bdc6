"""Data model shared by planner, runtime and trainer; standard library only."""
