"""`pfcluster sweep` of this checkout: `python tune/sweep.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from pfcluster.cli.main import main

    sys.exit(main(["sweep", *sys.argv[1:]]))
