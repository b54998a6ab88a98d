"""One rank of a run that loses a rank: `lost_worker.py VICTIM SIGNAL STEP CONFIG FOLDER`.

The victim sends itself the signal once STEP has been logged, or raises an error in that step if SIGNAL is "raise". With
STEP 0 nothing happens.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from pfcluster.launch import worker
from pfcluster.runs.folder import METRICS_FILE
from pfcluster.training.trainer import Trainer


def die_after(step: int, how: str, metrics: Path) -> None:
    """Wait until metrics.jsonl has a line of the step, then send the signal to this process."""
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), getattr(signal, how))


if __name__ == "__main__":
    victim, how, step, config, folder = sys.argv[1:]
    if int(os.environ["RANK"]) == int(victim) and int(step):
        if how == "raise":
            read = Trainer._read_batch

            def broken(self: Trainer, number: int):
                if number == int(step):
                    raise PermissionError("the tar cannot be opened any more")
                return read(self, number)

            Trainer._read_batch = broken  # type: ignore[method-assign]
        else:
            metrics = Path(folder) / METRICS_FILE
            threading.Thread(target=die_after, args=(int(step), how, metrics), daemon=True).start()
    sys.argv = ["worker", config, folder, "--threads", "1"]
    sys.exit(worker.main())
