"""docs/files.md follows the data classes."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_the_page_about_files_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "write_format_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
