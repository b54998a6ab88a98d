"""Networks that evaluate a run's poker faces, loaded before training starts: the judge (an emotion classifier), an
identity net, and the feature net of the Fréchet distance.

Legend: b images, f features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data.fingerprints import require_same_build
from pfcluster.data.labels import neutral_index
from pfcluster.data.types import Dataset
from pfcluster.distributed.process_group import World
from pfcluster.models.from_runs import load_classifier, load_identity_classifier
from pfcluster.models.identity_net import ClassifierFeatures, FaceNet, IdentityNet
from pfcluster.models.weight_files import read_weights


@dataclass(frozen=True)
class Judge:
    """The evaluation classifier: trained separately, never used in training a PF-ViT."""

    classify: Callable[[Tensor], Tensor]
    """b 3 size size in -1..1 -> logits b k."""
    size: int
    """Input side in pixels."""
    neutral: int
    """Index of its neutral class."""


@dataclass(frozen=True)
class Evaluators:
    """Evaluation networks of a run; None where the config names none."""

    judge: Judge | None = None
    identity_net: IdentityNet | None = None
    """Its features' cosine similarity measures how much of the identity is kept."""
    fid: nn.Module | None = None
    """Images b 3 h w in -1..1 -> features b f for the Fréchet distance."""


class Inception(nn.Module):
    """InceptionV3's 2048 pooled features for FID (Heusel et al. 2017), through torchmetrics and torch-fidelity."""

    def __init__(self, weights: str | None) -> None:
        """Load torch-fidelity's weights from a file, or download them (None). Raises ConfigError."""
        from torchmetrics.image.fid import NoTrainInceptionV3

        super().__init__()
        try:
            if weights is not None:
                read_weights(Path(weights), "evaluate.fid")  # names what is wrong with a damaged file
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"evaluate.fid: cannot load InceptionV3 from {weights or 'the network'}: {error}; use torch-fidelity's"
                " file weights-inception-2015-12-05-6726825d.pth or the folder of a finetune run, or leave it out"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w in -1..1 -> b 2048. The net takes uint8 images and resizes them itself."""
        return self.net(((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)).flatten(1)


def load_evaluators(config: RunConfig, dataset: Dataset, identity_net: IdentityNet | None, world: World) -> Evaluators:
    """Load the evaluation networks that a PF-MAG config names; `identity_net` is φ of the training loss.

    Raises ConfigError if one cannot be loaded or does not fit the dataset.
    """
    if config.objective != "pf_mag":
        return Evaluators()
    return Evaluators(
        load_judge(config, dataset, world), _identity_net(config, identity_net, world), _fid(config, world)
    )


def load_judge(config: RunConfig, dataset: Dataset, world: World, option: str = "evaluate.judge") -> Judge | None:
    """Load the judge from its run folder; None where the config names none. `option` is its name in error messages.

    Classes are matched by name. Raises ConfigError if the dataset has no neutral class or other classes than the judge,
    or if the judge was trained on another build of the same dataset, which may share photos with this one's test split.
    """
    if config.objective != "pf_mag" or config.evaluate.judge is None:
        return None
    classifier = load_classifier(Path(config.evaluate.judge), option)
    neutral = neutral_index(dataset.classes)
    if neutral is None:
        raise ConfigError(f"{option}: {dataset.name} has no neutral class; leave {option} out")
    judges = dataset.classes if classifier.classes is None else classifier.classes
    if set(judges) != set(dataset.classes) or classifier.outputs != len(judges):
        known = f"{classifier.outputs} classes" if classifier.classes is None else f"the classes {', '.join(judges)}"
        raise ConfigError(
            f"{option}: {config.evaluate.judge} has {known}, {dataset.name} has {', '.join(dataset.classes)};"
            " train a judge on the same data"
        )
    require_same_build(config, Path(config.evaluate.judge), option)
    columns = torch.tensor([judges.index(name) for name in dataset.classes], device=world.device)
    net = classifier.net.to(world.device)
    return Judge(lambda images: net(images)[:, columns], classifier.config.data.size, neutral)


def _identity_net(config: RunConfig, identity_net: IdentityNet | None, world: World) -> IdentityNet | None:
    """The net of `evaluate.identity_net`; without one φ, if it is the paper's FaceNet."""
    if config.evaluate.identity_net is None:
        return identity_net if isinstance(identity_net, FaceNet) else None
    classifier = load_identity_classifier(Path(config.evaluate.identity_net), "evaluate.identity_net")
    return ClassifierFeatures(classifier.net, classifier.config.data.size, "embedding").to(world.device)


def _fid(config: RunConfig, world: World) -> nn.Module | None:
    """InceptionV3, or the penultimate features of a finetune run."""
    source = config.evaluate.fid
    if source is None:
        return None
    if source != "inception" and Path(source).is_dir():
        classifier = load_classifier(Path(source), "evaluate.fid")
        return ClassifierFeatures(classifier.net, classifier.config.data.size, "embedding").to(world.device)
    if source != "inception" and not Path(source).is_file():
        raise ConfigError(f'evaluate.fid: neither a file nor a folder: {source}; use "inception", a file or a run')
    if world.is_main and source == "inception":
        Inception(None)  # the download takes no lock: rank 0 fills the cache first
    world.barrier()
    return Inception(None if source == "inception" else source).eval().requires_grad_(False).to(world.device)
