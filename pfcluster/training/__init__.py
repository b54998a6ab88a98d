"""Training: objectives, the training loop, and parity checks. `run(config, folder)` trains one config."""

from pfcluster.training.trainer import run

__all__ = ["run"]
