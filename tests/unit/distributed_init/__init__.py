"""Tests of the watch, the verdicts and the outermost frame; no process group."""
