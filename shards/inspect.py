"""Show what a folder of shards holds: python shards/inspect.py DIR [--sheet out.png] [--verify]"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]  # this file is not Python's inspect
sys.path.insert(0, str(HERE.parent))

if __name__ == "__main__":
    from pfcluster.cli.inspect import main

    sys.exit(main())
