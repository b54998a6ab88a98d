"""Changes to a config from the command line: `--section.field value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import with_values
from pfcluster.config.starts import SAME_SEED_MAE_VIT
from pfcluster.launch.command_line import parse

SET_BY_COMMANDS = {
    "--seed": "runs take their seeds from --seeds",
    "--objective": "the command says what is trained",
}
"""Fields that every command which trains sets itself, and why they cannot be given."""
SET_BY_STUDIES = {**SET_BY_COMMANDS, "--name": "the runs of a study are named after what they train"}


def require_absent(overrides: Sequence[str], reasons: Mapping[str, str]) -> None:
    """Raises ConfigError if the pairs set one of the options in `reasons`, whose value would have no effect."""
    for word in overrides:
        option = word.partition("=")[0].replace("_", "-")
        if option in reasons:
            raise ConfigError(f"{option} would have no effect: {reasons[option]}; leave it out")


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Apply `--section.field value` pairs to a config. Where `model.init` names weights from elsewhere, sizes that the
    pairs do not give are taken from those weights. Raises ConfigError, WeightsError.
    """
    changed = parse(RunConfig, overrides, prog="pfcluster finetune", default=config) if overrides else config
    if changed.model.init in (None, SAME_SEED_MAE_VIT):
        return changed
    return _with_external_sizes(changed, changed.model.init, overrides)


def override_value(overrides: Sequence[str], option: str) -> str | None:
    """The last value that the pairs set for an option such as "--data.shards"; None if they set none."""
    value = None
    for number, word in enumerate(overrides):
        name, equals, text = word.partition("=")
        if name == option and equals:
            value = text
        elif name == option and number + 1 < len(overrides):
            value = overrides[number + 1]
    return value


def _with_external_sizes(config: RunConfig, init: str, overrides: Sequence[str]) -> RunConfig:
    from pfcluster.models.pretrained import external_sizes

    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in overrides if word.startswith("--")}
    cnn = config.model.architecture == "cnn"  # has only the image size in common with a ViT
    sizes = {name: value for name, value in external_sizes(init).items() if not cnn or name == "data.size"}
    sizes = {name: value for name, value in sizes.items() if name not in given}
    return with_values(config, sizes, f"model.init {init}")
