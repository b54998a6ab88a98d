"""The `pfcluster` command of this checkout: `python jobs/launch.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pfcluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
