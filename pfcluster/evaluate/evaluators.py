"""The nets that measure a run's poker faces, loaded before it trains: a judge of emotions, a net that tells people
apart, and the features of the Fréchet distance.

Legend: b images, f features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.labels import neutral_index
from pfcluster.data.types import Dataset
from pfcluster.distributed.process_group import World
from pfcluster.models.from_runs import load_classifier, load_identity_classifier
from pfcluster.models.identity_net import FaceNet, IdentityNet, OwnNet


@dataclass(frozen=True)
class Judge:
    """A separately trained classifier, and which of its classes is neutral."""

    classify: Callable[[Tensor], Tensor]
    size: int
    neutral: int


@dataclass(frozen=True)
class Evaluators:
    """What there is to measure with; None where the config names nothing."""

    judge: Judge | None = None
    people: IdentityNet | None = None
    """Features whose cosine tells how much of the person is left."""
    fid: nn.Module | None = None
    """Images b 3 h w in -1..1 -> features b f of the Fréchet distance."""


class Inception(nn.Module):
    """InceptionV3's 2048 features of the FID (Heusel et al. 2017), through torchmetrics and torch-fidelity."""

    def __init__(self, weights: str | None) -> None:
        """Weights: torch-fidelity's file, or None to download it. Raises ConfigError."""
        from torchmetrics.image.fid import NoTrainInceptionV3

        super().__init__()
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"evaluate.fid: no InceptionV3 from {weights or 'the network'}: {error}; give torch-fidelity's file"
                " weights-inception-2015-12-05-6726825d.pth, the folder of a run of ours, or leave it out"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w in -1..1 -> b 2048. The net reads bytes and resizes them itself."""
        return self.net(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)).flatten(1)


def load_evaluators(config: RunConfig, dataset: Dataset, identity_net: IdentityNet | None, world: World) -> Evaluators:
    """What a config measures poker faces with; `recognition` is φ. Raises ConfigError where it cannot."""
    if config.objective != "pf_mag":
        return Evaluators()
    return Evaluators(load_judge(config, dataset, world), _people(config, identity_net, world), _fid(config, world))


def load_judge(config: RunConfig, dataset: Dataset, world: World) -> Judge | None:
    """The classifier that judges poker faces, from its run folder. Raises ConfigError where it cannot judge."""
    if config.objective != "pf_mag" or config.evaluate.judge is None:
        return None
    found = load_classifier(Path(config.evaluate.judge), "evaluate.judge")
    neutral = neutral_index(dataset.classes)
    if neutral is None:
        raise ConfigError(f"evaluate.judge: {dataset.name} has no neutral class to judge by; leave the judge out")
    if found.classes != len(dataset.classes):
        raise ConfigError(
            f"evaluate.judge: {config.evaluate.judge} knows {found.classes} classes, {dataset.name} has"
            f" {len(dataset.classes)}; train a judge on the same data"
        )
    return Judge(found.net.to(world.device), found.config.data.size, neutral)


def _people(config: RunConfig, identity_net: IdentityNet | None, world: World) -> IdentityNet | None:
    """The net that the config names; else φ where it knows people: the paper's face net."""
    if config.evaluate.identity_net is None:
        return identity_net if isinstance(identity_net, FaceNet) else None
    found = load_identity_classifier(Path(config.evaluate.identity_net), "evaluate.identity_net")
    return OwnNet(found.net, found.config.data.size, "embedding").to(world.device)


def _fid(config: RunConfig, world: World) -> nn.Module | None:
    """InceptionV3, or the penultimate features of a run."""
    wanted = config.evaluate.fid
    if wanted is None:
        return None
    if wanted != "inception" and Path(wanted).is_dir():
        found = load_classifier(Path(wanted), "evaluate.fid")
        return OwnNet(found.net, found.config.data.size, "embedding").to(world.device)
    if wanted != "inception" and not Path(wanted).is_file():
        raise ConfigError(f'evaluate.fid: neither a file nor a folder: {wanted}; give "inception", a file or a run')
    if world.is_main and wanted == "inception":
        Inception(None)  # downloads, which takes no lock
    world.barrier()
    return Inception(None if wanted == "inception" else wanted).eval().requires_grad_(False).to(world.device)
