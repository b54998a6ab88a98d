"""Build the engines and the training objective that a config specifies."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.data.labels import neutral_index
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine
from pfcluster.engine.factory import build_engine
from pfcluster.engine.optimizer import optimizers_of
from pfcluster.models.losses import inverse_frequency
from pfcluster.models.mae import MAE
from pfcluster.training.finetune import FinetuneObjective
from pfcluster.training.mae import MaeObjective
from pfcluster.training.objective import Objective
from pfcluster.training.pf_mag import PfMagObjective
from pfcluster.training.pf_mag_terms import loss_settings


def build_engines(config: RunConfig, backend: str, modules: Mapping[str, nn.Module], world: World) -> dict[str, Engine]:
    """One engine per module, built in the same order on all ranks. A collective."""
    optimizers = optimizers_of(config)
    return {
        name: build_engine(
            backend,
            module,
            optimizers[name],
            config.engine,
            world,
            double_backward=needs_double_backward(config, name),
        )
        for name, module in modules.items()
    }


def needs_double_backward(config: RunConfig, name: str) -> bool:
    """Whether the gradient with respect to a module's inputs is differentiated: the discriminator's with R1."""
    return name == "discriminator" and config.pf_mag.r1 > 0


def build_objective(
    config: RunConfig,
    engines: dict[str, Engine],
    classes: tuple[str, ...],
    world: World,
    *,
    class_weights: Tensor | None = None,
    identity_net: nn.Module | None = None,
) -> Objective:
    """The config's objective. `class_weights` (k) weight the classification loss, `identity_net` is φ of L_ort."""
    if config.objective == "mae":
        model = engines["model"].module
        assert isinstance(model, MAE)
        return MaeObjective(
            engines["model"], kept=model.kept, patch=config.model.patch, norm_pixels=config.mae.norm_pixels
        )
    smoothing = config.classifier.label_smoothing
    if config.objective == "finetune":
        return FinetuneObjective(engines["model"], class_weights=class_weights, label_smoothing=smoothing)
    settings = loss_settings(config.pf_mag, neutral_index(classes), class_weights, smoothing, identity_net)
    return PfMagObjective(engines["model"], engines["discriminator"], settings, config.pf_mag, world)


def build_class_weights(config: RunConfig, train: Split, world: World) -> Tensor | None:
    """Weights k of the classification loss by `classifier.class_balance`; None if all classes weigh the same."""
    if config.objective == "mae" or config.classifier.class_balance == "none":
        return None
    counts = torch.bincount(train.labels(), minlength=len(train.classes))
    return inverse_frequency(counts.float()).to(world.device)
