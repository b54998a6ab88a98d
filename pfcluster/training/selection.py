"""Evaluation during training, and selection of the best checkpoint by its score."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine, norm_statistics
from pfcluster.engine.optimizer import Plateau, optimizers_of
from pfcluster.evaluate.batch_norms import recompute_batch_norms
from pfcluster.evaluate.calibration import calibrate_erasure
from pfcluster.evaluate.final import evaluate_split
from pfcluster.evaluate.tracked_faces import TrackedFaces
from pfcluster.models.pf_vit import PFViT
from pfcluster.training.resume import TrainState
from pfcluster.training.schedule import adversarial_start, evaluation_steps, grid_due, selection_start


class PeriodicEvaluation:
    """Evaluates the model on the selection split every `evaluate.every_epochs` and after the last step."""

    def __init__(
        self, config: RunConfig, folder: Path, dataset: Dataset, replica: nn.Module, total_steps: int, world: World
    ) -> None:
        """`replica` is a copy of the model that is not wrapped by an engine."""
        self.config, self.folder, self.replica, self.world = config, folder, replica, world
        self.split, self.train = selection_split(config, dataset), dataset.train
        self.classes = dataset.classes
        self.total_steps = total_steps
        self.every_steps = evaluation_steps(config, len(dataset.train))
        self.uncounted_steps = selection_start(config, total_steps)
        """Evaluations up to here select no checkpoint: before PF-MAG's adversarial part begins, PF-ViT generates no
        poker faces, but from a fine-tuned classifier its accuracy may be highest then."""
        self.warmup_steps = min(adversarial_start(config), self.uncounted_steps)
        """The plateau schedule ignores evaluations up to here, because PF-MAG's adversarial part changes the scores."""
        self._has_averaged_norms = config.optim.ema > 0 and bool(norm_statistics(replica))
        self.tracked_faces = TrackedFaces(config, self.split, world) if config.objective == "pf_mag" else None

    def due(self, step: int) -> bool:
        """Whether the model is evaluated after this many steps."""
        return step % self.every_steps == 0 or step == self.total_steps

    def evaluate(self, engine: Engine, state: TrainState) -> tuple[dict[str, float], bool]:
        """Metrics of the current weights, and whether their score is the best so far; updates `state`. A collective."""
        model = self._plain_model(engine)
        self._calibrate(engine, model)
        metrics, score = evaluate_split(self.config, model, self.split, self.classes, self.world)
        if self.tracked_faces is not None:
            metrics |= self.tracked_faces.region_mse(model)
            if grid_due(self.config, state.step // self.every_steps) or state.step == self.total_steps:
                self.tracked_faces.draw(model, self.folder, state.step)
        model.to("cpu")
        if state.step > self.warmup_steps:
            state.plateaus = {
                name: state.plateaus.get(name, Plateau()).after(score, optim)
                for name, optim in optimizers_of(self.config).items()
            }
        if state.step <= self.uncounted_steps:
            return metrics, False
        if state.best is not None and not is_better(score, state.best["score"]):
            return metrics, False
        state.best = {"step": state.step, "score": score}
        return metrics, True

    def _calibrate(self, engine: Engine, model: nn.Module) -> None:
        """Fit the erasure of f_p and the batch norms of averaged weights to the evaluated weights, also in the module
        that is saved. A collective.
        """
        trained = engine.module
        if self._has_averaged_norms:
            engine.average_buffers = recompute_batch_norms(self.config, model, self.train, self.world)
        if isinstance(model, PFViT) and model.erasure is not None and model.erasure.erases:
            assert isinstance(trained, PFViT)
            assert trained.erasure is not None
            calibrate_erasure(self.config, model, self.train, self.world)
            trained.erasure.copy_calibration(model.erasure)

    def before_saving(self, engine: Engine, step: int) -> None:
        """Give a checkpoint that was not evaluated the erasure of training, which nearly fits its weights, and the
        statistics of batch norms for its averaged weights. A collective.
        """
        trained = engine.module
        if self._has_averaged_norms and not self.due(step):
            self._calibrate(engine, self._plain_model(engine))
            self.replica.to("cpu")
        if isinstance(trained, PFViT) and trained.erasure is not None and not self.due(step):
            trained.erasure.calibrate_from_running()

    def _plain_model(self, engine: Engine) -> nn.Module:
        """The replica on the device with the full weights, or with their moving average if there is one.

        Ranks may call it different numbers of times, which would deadlock an engine's own module.
        """
        self.replica.load_state_dict(engine.model_state(averaged=self.config.optim.ema > 0))
        return self.replica.to(self.world.device)


def is_better(score: float, best: float) -> bool:
    """Whether a score is above the best so far. One that is not a number is above none, and any other is above it."""
    return score > best or (math.isnan(best) and not math.isnan(score))


def selection_split(config: RunConfig, dataset: Dataset) -> Split:
    """The split whose score selects the checkpoint. Raises ConfigError if the data does not have it."""
    if config.evaluate.selection_split == "validation":
        return dataset.validation
    if dataset.test is None:
        raise ConfigError(
            f"evaluate.selection_split test: {dataset.name} has no test split; use validation, or build the data with"
            " --test-share or --test-input"
        )
    return dataset.test
