"""`pfcluster build` of this checkout: `python shards/build.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]  # inspect.py would shadow Python's module
sys.path.insert(0, str(HERE.parent))

if __name__ == "__main__":  # worker processes that are spawned import this file again
    from pfcluster.cli.main import main

    sys.exit(main(["build", *sys.argv[1:]]))
