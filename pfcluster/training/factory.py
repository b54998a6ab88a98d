"""From a config to what its steps are made of: engines around its modules, and the objective that drives them."""

from __future__ import annotations

import torch

from pfcluster.config import RunConfig
from pfcluster.data.labels import neutral_index
from pfcluster.data.types import Dataset
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine
from pfcluster.engine.factory import build_engine
from pfcluster.models.identity_net import IdentityNet
from pfcluster.models.losses import inverse_frequency
from pfcluster.models.mae import MAE
from pfcluster.training.finetune import FinetuneObjective
from pfcluster.training.mae import MaeObjective
from pfcluster.training.objective import Objective
from pfcluster.training.pf_mag import PfMagObjective, loss_settings


def build_engines(
    config: RunConfig, backend: str, modules: dict[str, torch.nn.Module], here: World
) -> dict[str, Engine]:
    """An engine around each module, in the same order on all ranks."""
    optims = {"model": config.optim, "discriminator": config.discriminator_optim}
    twice = {"model": False, "discriminator": config.pf_mag.r1 > 0}
    return {
        name: build_engine(backend, module, optims[name], config.engine, here, double_backward=twice[name])
        for name, module in modules.items()
    }


def build_objective(
    config: RunConfig,
    engines: dict[str, Engine],
    dataset: Dataset,
    identity_net: IdentityNet | None,
    here: World,
) -> Objective:
    """The objective that a config names, with everything it needs from the data."""
    if config.objective == "mae":
        model = engines["model"].module
        assert isinstance(model, MAE)
        return MaeObjective(
            engines["model"], kept=model.kept, patch=config.model.patch, norm_pixels=config.mae.norm_pixels
        )
    class_weights = None
    if config.classifier.class_balance == "inverse":
        counts = torch.bincount(dataset.train.labels(), minlength=len(dataset.classes))
        class_weights = inverse_frequency(counts.float()).to(here.device)
    smoothing = config.classifier.label_smoothing
    if config.objective == "finetune":
        return FinetuneObjective(engines["model"], class_weights=class_weights, label_smoothing=smoothing)
    neutral = neutral_index(dataset.classes)
    settings = loss_settings(config.pf_mag, neutral, class_weights, smoothing, identity_net)
    return PfMagObjective(engines["model"], engines["discriminator"], settings, config.pf_mag, here)
