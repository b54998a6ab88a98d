"""`pfcluster inspect` of this checkout: `python shards/inspect.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]  # inspect.py would shadow Python's module
sys.path.insert(0, str(HERE.parent))

if __name__ == "__main__":
    from pfcluster.cli.main import main

    sys.exit(main(["inspect", *sys.argv[1:]]))
