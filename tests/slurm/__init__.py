"""Tests under a real Slurm, which they bring up; its hosts and links are those of tools/linklab."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
