"""The trackers behind one small interface. Their packages are imported where a tracker starts.

All write into the run folder unless an environment variable of the tracker's own names a server.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfcluster.config import RunConfig
from pfcluster.config.io import flatten
from pfcluster.runs.folder import TENSORBOARD_DIR, TRACKERS_DIR

PROJECT = "pfcluster"
"""Project or experiment, unless the tracker's own variable names another."""
MLFLOW_BATCH = 100
"""Parameters per request that MLflow allows."""
MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class TrackerError(RuntimeError):
    """A tracker cannot be used; says what to do."""


@dataclass(frozen=True)
class TrackedRun:
    """Properties of a run that are passed to a tracker."""

    config: RunConfig
    folder: Path
    unique_id: str
    """Made for the run at its first start."""

    @property
    def title(self) -> str:
        """The run's name in the tracker."""
        return f"{self.config.name} seed {self.config.seed}"

    @property
    def group(self) -> str:
        """Runs that differ in name and seed only: the folder of the study."""
        return self.folder.resolve().parent.parent.name

    def fields(self) -> dict[str, Any]:
        """The config's fields by dotted name."""
        return flatten(asdict(self.config))

    def data_folder(self, tracker: str) -> Path:
        """Where the tracker writes by itself; created."""
        path = self.folder.resolve() / TRACKERS_DIR / tracker
        path.mkdir(parents=True, exist_ok=True)
        return path


class Tracker(ABC):
    """One run in one tracker. Every method may raise anything; all are called from one thread."""

    @abstractmethod
    def start(self, run: TrackedRun, tracker_id: str | None) -> str:
        """Begin the run, or continue the one with this id; -> its id."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars by name, such as "train/loss". Steps do not decrease."""

    @abstractmethod
    def picture(self, name: str, path: Path, step: int) -> None:
        """Record an image file."""

    def file(self, path: Path) -> None:
        """Keep a file with the run; nothing where a tracker keeps no files."""
        return

    def flush(self) -> None:
        """Return when what was recorded would survive the end of this process."""
        return

    @abstractmethod
    def finish(self, status: str) -> None:
        """End the run for now. `status`: finished, stopped, interrupted or failed."""


class TensorBoard(Tracker):
    """Event files in the run folder."""

    def start(self, run: TrackedRun, tracker_id: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder / TENSORBOARD_DIR))
        if tracker_id is None:
            lines = [f"    {name}: {value}" for name, value in run.fields().items()]
            self.writer.add_text("config", "\n".join(lines))
        return TENSORBOARD_DIR

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def finish(self, status: str) -> None:
        self.writer.close()


class Wandb(Tracker):
    """Weights & Biases: offline unless WANDB_MODE says otherwise. `wandb sync` uploads the folders of all attempts as
    one run, since they have one id.
    """

    def start(self, run: TrackedRun, tracker_id: str | None) -> str:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]  # wandb checks it
            id=tracker_id or run.unique_id,
            resume="allow",
            name=run.title,
            group=run.group,
            dir=str(run.data_folder("wandb")),
            config=run.fields(),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        self.run.define_metric("*", step_metric="step")  # wandb's own step keeps back a row until the next one
        return str(self.run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.wandb.Image(str(path)), "step": step})

    def file(self, path: Path) -> None:
        copy = Path(self.run.dir) / path.name  # save() would leave a link to a file that may change or move
        shutil.copyfile(path, copy)
        self.run.save(str(copy), base_path=self.run.dir, policy="now")

    def finish(self, status: str) -> None:
        self.run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


class Mlflow(Tracker):
    """MLflow: a file store in the run folder unless MLFLOW_TRACKING_URI names a server or a database."""

    def start(self, run: TrackedRun, tracker_id: str | None) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases refuse it otherwise
            uri = run.data_folder("mlflow").as_uri()
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        if tracker_id is not None:
            try:
                self.client.update_run(tracker_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                tracker_id = None  # another server than before
        self.id = tracker_id or self._create(run)
        return self.id

    def _create(self, run: TrackedRun) -> str:
        """A new run with the config as parameters."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        created = self.client.create_run(number, run_name=run.title, tags={"group": run.group}).info.run_id
        params = [Param(field, str(value)) for field, value in run.fields().items()]
        for first in range(0, len(params), MLFLOW_BATCH):
            self.client.log_batch(created, params=params[first : first + MLFLOW_BATCH])
        return str(created)

    def log(self, values: Mapping[str, float], step: int) -> None:
        import time

        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def picture(self, name: str, path: Path, step: int) -> None:
        self.client.log_artifact(self.id, str(path), name)

    def file(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def finish(self, status: str) -> None:
        self.client.set_terminated(self.id, MLFLOW_STATUS[status])


class Trackio(Tracker):
    """trackio: a database in the run folder unless TRACKIO_DIR names another folder."""

    def start(self, run: TrackedRun, tracker_id: str | None) -> str:
        directory = os.environ.get("TRACKIO_DIR")
        if directory is None:
            directory = str(run.data_folder("trackio"))
            os.environ["TRACKIO_DIR"] = directory  # trackio reads it once, when it is imported
            try:
                import trackio
            finally:
                del os.environ["TRACKIO_DIR"]
        else:
            import trackio
        if Path(trackio.TRACKIO_DIR).resolve() != Path(directory).resolve():
            raise TrackerError(
                f"trackio was imported before and writes to {trackio.TRACKIO_DIR}: set TRACKIO_DIR to train several"
                " runs in one process"
            )
        self.trackio = trackio
        self.run = trackio.init(
            project=PROJECT,
            name=tracker_id or f"{run.config.name}-seed-{run.config.seed}-{run.unique_id}",
            group=run.group,
            config=run.fields(),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return str(self.run.name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.trackio.Image(str(path))}, step=step)

    def file(self, path: Path) -> None:
        self.run.log_artifact(str(path), name=path.name, type="file")

    def finish(self, status: str) -> None:
        self.run.finish()


CLIENTS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
