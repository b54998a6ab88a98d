"""Classifiers of runs that are already there, frozen, for the measures and losses of other runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.models import factory
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.identity_net import IdentityNet, OwnNet, facenet, find_weights, load_weights, resnet
from pfcluster.runs.folder import read_config


@dataclass(frozen=True)
class Trained:
    """A run's classifier at its best checkpoint, and the config that trained it."""

    config: RunConfig
    net: nn.Module
    classes: int


def load_classifier(folder: Path, option: str, command: str = "judge") -> Trained:
    """The fine-tuned classifier of a run's folder. `option` is what asked for it, `command` what would train one.
    Raises ConfigError.
    """
    try:
        state = store.load(folder).weights()
        config = read_config(folder)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; train one with `jobs/launch.py {command}`") from error
    if config.objective != "finetune":
        raise ConfigError(f"{option}: {folder} is a run of {config.objective}, a classifier is needed")
    classes = len(state["head.weight"])
    net = factory.build(config, classes, load_init=False)["model"]
    net.load_state_dict(state)
    return Trained(config, net.eval().requires_grad_(False), classes)


def load_identity_classifier(folder: Path, option: str) -> Trained:
    """A classifier that tells people apart. Raises ConfigError."""
    found = load_classifier(folder, option, "judge --data.target identity")
    if found.config.data.target != "identity":
        raise ConfigError(
            f"{option}: {folder} tells emotions apart, not people; train one with"
            " `jobs/launch.py judge --data.target identity`"
        )
    return found


def blank_identity_net(config: RunConfig) -> IdentityNet | None:
    """φ as the config asks for it, without its weights, for counts and timings; a run's is taken for a judge's net."""
    wanted = config.pf_mag
    if config.objective != "pf_mag" or wanted.identity_net == "tokens":
        return None
    if wanted.identity_net == "run":
        return OwnNet(SmallCNN(1), config.data.size, wanted.identity_net_layer)
    return (facenet if wanted.identity_net == "facenet" else resnet)(wanted.identity_net_layer)


def load_identity_net(config: RunConfig, here: World) -> IdentityNet | None:
    """φ, where PF-MAG's L_ort asks for one; rank 0 looks (and downloads) first.

    Raises RecognitionError, ConfigError.
    """
    settings = config.pf_mag
    if config.objective != "pf_mag" or settings.identity_net == "tokens":
        return None
    if settings.identity_net == "run":
        assert settings.identity_net_weights is not None
        found = load_classifier(Path(settings.identity_net_weights), "pf_mag.identity_net_weights")
        return OwnNet(found.net, found.config.data.size, settings.identity_net_layer).to(here.device)
    if here.is_main:
        find_weights(settings.identity_net, settings.identity_net_weights)
    here.barrier()
    weights = find_weights(settings.identity_net, settings.identity_net_weights)
    net = blank_identity_net(config)
    assert net is not None
    load_weights(net, weights)
    return net.to(here.device)
