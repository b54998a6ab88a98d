"""The subcommands of `pfcluster`: where each is implemented, and the help text that lists them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandInfo:
    """One subcommand."""

    function: str
    """`module:function`; the function takes the arguments and returns the exit code."""
    summary: str
    usage: str = ""
    """The arguments that the help text shows."""


GROUPS: dict[str, dict[str, CommandInfo]] = {
    "Train": {
        "demo": CommandInfo("pfcluster.cli.train:demo", "the whole method on built-in synthetic faces"),
        "study": CommandInfo("pfcluster.cli.train:study", "the whole method on your shards", "--data.shards DIR"),
        "pipeline": CommandInfo("pfcluster.cli.train:pipeline", "demo or study, if no command is given"),
        "pretrain": CommandInfo("pfcluster.cli.train:pretrain", "pre-train the MAE"),
        "finetune": CommandInfo("pfcluster.cli.train:finetune", "train a classifier", "[--model.init RUN]"),
        "pf-mag": CommandInfo("pfcluster.cli.train:pf_mag", "train PF-ViT", "[--model.init RUN]"),
        "judge": CommandInfo("pfcluster.cli.train:judge", "train the evaluation classifier"),
        "reproduce": CommandInfo("pfcluster.cli.reproduce:main", "the paper's experiments and tables", "--miniature"),
        "sweep": CommandInfo("pfcluster.cli.sweep:main", "search hyperparameters, confirm on fresh seeds"),
    },
    "Data": {
        "build": CommandInfo("pfcluster.cli.build:main", "build shards from photos", "--input DIR --output DIR"),
        "inspect": CommandInfo("pfcluster.cli.inspect:main", "show and check a folder of shards", "DIR"),
    },
    "Results": {
        "evaluate": CommandInfo("pfcluster.cli.evaluate:main", "scores of a run's best checkpoint", "RUN"),
        "report": CommandInfo("pfcluster.cli.report:main", "mean ± std over seeds, tables, pictures", "STUDY"),
        "pictures": CommandInfo("pfcluster.cli.pictures:main", "attention maps, features, failures", "RUN ..."),
        "tables": CommandInfo("pfcluster.cli.tables:main", "the paper's tables of a reproduction", "OUTPUT"),
        "measure": CommandInfo("pfcluster.cli.measure:main", "one measurement of a reproduction", "WHAT OUTPUT"),
        "consolidate": CommandInfo("pfcluster.cli.consolidate:main", "weights as one safetensors file", "RUN"),
        "costs": CommandInfo("pfcluster.cli.costs:main", "parameters, FLOPs and speed of presets"),
    },
    "Models": {
        "predict": CommandInfo("pfcluster.cli.predict:predict", "label faces of photos and videos", "INPUT ..."),
        "app": CommandInfo("pfcluster.cli.app:main", "a web page for a model", "[--model M]"),
        "export": CommandInfo("pfcluster.cli.predict:export", "a run as a model folder", "RUN --output DIR"),
    },
    "Jobs": {
        "status": CommandInfo("pfcluster.cli.status:status", "state, step and speed of all runs", "[NAME]"),
        "logs": CommandInfo("pfcluster.cli.status:logs", "the end of a rank's log", "NAME"),
        "cancel": CommandInfo("pfcluster.cli.status:cancel", "save and stop what is running", "NAME"),
    },
    "Installation": {
        "doctor": CommandInfo("pfcluster.cli.doctor:launch", "test every engine on this machine or cluster"),
        "completion": CommandInfo("pfcluster.cli.completion:main", "print shell completion", "bash|zsh|tcsh|fish"),
    },
}
COMMANDS = {name: info for group in GROUPS.values() for name, info in group.items()}
SLURM_COMMANDS = ("evaluate", "report", "pictures", "tables", "measure", "consolidate", "costs", "doctor", "build")
"""Commands besides the training ones that run as a SLURM job with --executor slurm."""


def help_text() -> str:
    """The output of `pfcluster --help`."""
    lines = [
        "usage: pfcluster COMMAND [OPTIONS]",
        "",
        "Train, evaluate and report PF-ViT, on this machine, a SLURM cluster or a Ray cluster.",
    ]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {f'{name} {info.usage}'.strip():31} {info.summary}" for name, info in commands.items()]
    lines += [
        "",
        "`pfcluster COMMAND --help` lists the options of a command, `pfcluster --version` prints the version.",
        "An interrupted command continues from its checkpoints when it is run again.",
    ]
    return "\n".join(lines)


def similar(command: str) -> str:
    """A hint for a command that does not exist."""
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
