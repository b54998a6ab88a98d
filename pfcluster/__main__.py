"""`python -m pfcluster`: the same as the `pfcluster` command."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # worker processes that are spawned import this file again
    from pfcluster.cli.main import main

    sys.exit(main())
