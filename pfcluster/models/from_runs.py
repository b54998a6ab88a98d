"""Load the trained classifiers of finished runs, frozen, for the metrics and losses of other runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.models import factory
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.identity_net import ClassifierFeatures, IdentityNet, facenet, find_weights, load_weights, resnet
from pfcluster.runs.folder import CONFIG_FILE, read_config
from pfcluster.runs.run_inputs import recorded_classes


@dataclass(frozen=True)
class TrainedClassifier:
    """A run's classifier at its best checkpoint, and the run's config."""

    config: RunConfig
    net: nn.Module
    classes: tuple[str, ...] | None
    """In the order of its outputs; None for a run that recorded none."""
    outputs: int


def load_classifier(folder: Path, option: str, command: str = "judge") -> TrainedClassifier:
    """Load a fine-tuned classifier from a run folder. Raises ConfigError, which names the `option` that requires it and
    the pfcluster `command` that trains one.
    """
    try:
        state = store.load(folder).weights()
        config = read_config(folder)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; train one with `pfcluster {command}`") from error
    if config.objective != "finetune":
        raise ConfigError(f"{option}: {folder} is a run of {config.objective}, but a classifier is required")
    classes = recorded_classes(folder)
    try:
        net = factory.build(config, len(state["head.weight"]), load_init=False)["model"]
        net.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{option}: the weights in {folder} are not those of its {CONFIG_FILE} ({str(error).splitlines()[0]});"
            f" train it again with `pfcluster {command}`"
        ) from error
    outputs = len(state["head.weight"])
    if classes is not None and len(classes) != outputs:
        raise ConfigError(
            f"{option}: {folder} has {outputs} outputs, and records the classes {', '.join(classes)}; train it again"
            f" with `pfcluster {command}`"
        )
    return TrainedClassifier(config, net.eval().requires_grad_(False), classes, outputs)


def load_identity_classifier(folder: Path, option: str) -> TrainedClassifier:
    """Load an identity classifier. Raises ConfigError."""
    classifier = load_classifier(folder, option, "judge --data.target identity")
    if classifier.config.data.target != "identity":
        raise ConfigError(
            f"{option}: {folder} classifies emotions, not identities; train one with"
            " `pfcluster judge --data.target identity`"
        )
    return classifier


def build_identity_net(config: RunConfig) -> IdentityNet | None:
    """The config's φ without weights, to count and time it; φ of a run is assumed to be a SmallCNN."""
    options = config.pf_mag
    if config.objective != "pf_mag" or options.identity_net == "tokens":
        return None
    if options.identity_net == "run":
        return ClassifierFeatures(SmallCNN(1), config.data.size, options.identity_net_layer)
    return (facenet if options.identity_net == "facenet" else resnet)(options.identity_net_layer)


def load_identity_net(config: RunConfig, world: World) -> IdentityNet | None:
    """The config's φ for L_ort with its weights, on the device; None if it has none. Rank 0 downloads first.

    A collective. Raises IdentityNetError, ConfigError.
    """
    options = config.pf_mag
    if config.objective != "pf_mag" or options.identity_net == "tokens":
        return None
    if options.identity_net == "run":
        assert options.identity_net_weights is not None
        classifier = load_classifier(Path(options.identity_net_weights), "pf_mag.identity_net_weights")
        size = classifier.config.data.size
        return ClassifierFeatures(classifier.net, size, options.identity_net_layer).to(world.device)
    if world.is_main:
        find_weights(options.identity_net, options.identity_net_weights)
    world.barrier()
    weights = find_weights(options.identity_net, options.identity_net_weights)
    net = build_identity_net(config)
    assert net is not None
    load_weights(net, weights)
    return net.to(world.device)
