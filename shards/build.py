"""Build a folder of shards from raw photos: python shards/build.py --input FOLDER|CSV|TAR --output DIR"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]  # inspect.py here is not Python's inspect
sys.path.insert(0, str(HERE.parent))

if __name__ == "__main__":  # worker processes import this file again and must do no more
    from pfcluster.cli.build import main

    sys.exit(main())
