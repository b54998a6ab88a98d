"""The configuration of a run: frozen dataclasses by subject, JSON (io), presets. Import the classes from here."""

from pfcluster.config.data import AugmentConfig, DataConfig, SyntheticConfig
from pfcluster.config.engine import Backend, CheckpointConfig, EngineConfig
from pfcluster.config.evaluate import EvaluateConfig
from pfcluster.config.model import ClassifierConfig, MaeConfig, ModelConfig
from pfcluster.config.optim import OptimConfig
from pfcluster.config.pf_mag import LossWeights, PfMagConfig
from pfcluster.config.run import Objective, RunConfig
from pfcluster.config.validation import ConfigError

__all__ = [
    "AugmentConfig",
    "Backend",
    "CheckpointConfig",
    "ClassifierConfig",
    "ConfigError",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "LossWeights",
    "MaeConfig",
    "ModelConfig",
    "Objective",
    "OptimConfig",
    "PfMagConfig",
    "RunConfig",
    "SyntheticConfig",
]
