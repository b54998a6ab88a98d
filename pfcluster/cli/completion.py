"""`pfcluster completion SHELL`: shell completion of all commands and options."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from pfcluster.cli.app import AppOptions
from pfcluster.cli.build import BuildOptions
from pfcluster.cli.consolidate import ConsolidateOptions
from pfcluster.cli.costs import CostsOptions
from pfcluster.cli.doctor import DoctorOptions
from pfcluster.cli.evaluate import EvaluateOptions
from pfcluster.cli.inspect import InspectOptions
from pfcluster.cli.measure import MeasureOptions
from pfcluster.cli.pictures import PicturesOptions
from pfcluster.cli.predict import ExportOptions, PredictOptions
from pfcluster.cli.report import ReportOptions
from pfcluster.cli.reproduce import ReproduceOptions
from pfcluster.cli.status import CancelOptions, LogsOptions, StatusOptions
from pfcluster.cli.tables import TablesOptions
from pfcluster.launch.command_line import parse
from pfcluster.launch.training_options import STUDIES, TRAINING, defaults, with_config
from pfcluster.sweep.options import SweepCommand


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Print the completion script of a shell. For bash, write it to
    ~/.local/share/bash-completion/completions/pfcluster; for zsh, write it as `_pfcluster` into a folder of $fpath."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "tcsh", "fish"]]


OPTIONS: dict[str, type] = {
    "reproduce": ReproduceOptions,
    "sweep": SweepCommand,
    "build": BuildOptions,
    "inspect": InspectOptions,
    "evaluate": EvaluateOptions,
    "report": ReportOptions,
    "pictures": PicturesOptions,
    "tables": TablesOptions,
    "measure": MeasureOptions,
    "consolidate": ConsolidateOptions,
    "costs": CostsOptions,
    "predict": PredictOptions,
    "app": AppOptions,
    "export": ExportOptions,
    "status": StatusOptions,
    "logs": LogsOptions,
    "cancel": CancelOptions,
    "doctor": DoctorOptions,
    "completion": CompletionOptions,
}
"""The options of every command that has no fields of a config."""


def main(arguments: list[str]) -> int:
    """Print the completion script of a shell."""
    shell = parse(CompletionOptions, arguments, prog="pfcluster completion").shell
    tyro.cli(all_commands(), args=["--tyro-print-completion", shell], prog="pfcluster")
    return 0


def all_commands() -> Any:
    """A union of the options of all commands, which tyro takes as subcommands."""
    kinds: dict[str, Any] = {name: with_config(name, defaults(name)) for name in (*STUDIES, *TRAINING)} | OPTIONS
    subcommands = tuple(
        Annotated[
            kind if is_dataclass(kind) and isinstance(kind, type) else type(kind),
            tyro.conf.subcommand(name, **({} if isinstance(kind, type) else {"default": kind})),
        ]
        for name, kind in kinds.items()
    )
    return Union[subcommands]  # noqa: UP007
