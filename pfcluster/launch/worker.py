"""One process of a run: reads the config that its launcher wrote and calls `train.run`. Exit codes tell how it
ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

FINISHED, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 75
"""75 is sysexits.h's EX_TEMPFAIL: start again to go on."""


def main() -> int:
    """`python -m pfcluster.launch.worker CONFIG FOLDER [--threads N] [--command TEXT]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--command", default=None)
    options = parser.parse_args()
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()

    import torch

    from pfcluster.config_json import load
    from pfcluster.heartbeat import LostRankError
    from pfcluster.train import TrainingError, run

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        result = run(load(options.config), options.folder, options.command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:  # a full disk, a lost file system
        print(f"error: {error}; checkpoints from before are whole: mend it and give the same command", file=sys.stderr)
        return FAILED
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)  # libraries' own ends would wait for the lost rank
    return FINISHED if result["status"] == "finished" else INTERRUPTED


def _follow_parent(parent: int) -> None:
    """A launcher that was killed takes its workers with it, at a step's end and with a checkpoint."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
