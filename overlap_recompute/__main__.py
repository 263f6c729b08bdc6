"""`python -m overlap_recompute` is the command `overlap-recompute`."""

import sys

from overlap_recompute.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
