"""The `pfcluster` command: finds the subcommand, runs it, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence

from pfcluster.cli.commands import COMMANDS, SLURM_COMMANDS, help_text, similar
from pfcluster.launch.errors import LaunchError
from pfcluster.system.os_errors import describe
from pfcluster.system.redaction import redact_output
from pfcluster.system.streams import accept_all_characters

BROKEN_PIPE = 141
"""128 + SIGPIPE, as a shell reports it."""
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Set by torchrun and by jobs of other programs. The ranks of pfcluster run `pfcluster.launch.worker` instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default the one of `sys.argv`.

    Returns the exit code: 0 done, 1 a run failed, 2 the command cannot run as given, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    accept_all_characters()
    redact_output()
    _leave_process_group()
    return report_errors(lambda: _run_words(words))


def _leave_process_group() -> None:
    """Remove a launcher's rank from the environment, with a message: a command would wait for the other ranks."""
    size = os.environ.get("WORLD_SIZE", "1")
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    if size != "1":
        print(
            f"WORLD_SIZE={size} in the environment is ignored: a command starts its own processes (--processes,"
            " --nodes); torchrun starts `-m pfcluster.launch.worker`",
            file=sys.stderr,
        )


def _run_words(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        print(version_text())
        return 0
    if "" in words:
        place = words.index("")
        before = f" after {words[place - 1]}" if place else ""
        raise ValueError(f"the argument{before} is empty: set the shell variable that it comes from, or remove it")
    command, rest = ("pipeline", words) if words[0].startswith("-") else (words[0], words[1:])
    return run_command(command, rest)


def run_command(command: str, arguments: list[str]) -> int:
    """Run a subcommand; returns its exit code. Raises ValueError, LaunchError."""
    if command not in COMMANDS:
        raise ValueError(f"no command {command!r}; {similar(command)}")
    if command in SLURM_COMMANDS and any(word.startswith("--executor") for word in arguments):
        from pfcluster.cli.submit import run_or_submit

        return run_or_submit(command, arguments)
    return load_command(command)(arguments)


def load_command(command: str) -> Callable[[list[str]], int]:
    """The function of a subcommand. Its module is imported now, so that other commands do not wait for it."""
    module, _, function = COMMANDS[command].function.partition(":")
    loaded: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return loaded


def report_errors(run: Callable[[], int]) -> int:
    """Return the exit code of `run`. Errors of the user and failed runs are printed as one sentence on stderr; a file
    that cannot be read or written is an error of the user.
    """
    try:
        code = run()
        if sys.stdout is not None:  # as after `>&-`
            sys.stdout.flush()
        return code
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as error:  # tyro exits after --help
        return error.code if isinstance(error.code, int) else 0
    except BrokenPipeError:  # the reader of stdout has closed it, as in `pfcluster status | head`
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        _discard_unwritable_output()
        return 2


def _discard_output() -> None:
    """Prevent errors when Python flushes stdout at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _discard_unwritable_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()


def version_text() -> str:
    """Versions of pfcluster, torch and Python, in one line."""
    versions = {name: importlib.metadata.version(name) for name in ("pfcluster", "torch")}
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pfcluster {versions['pfcluster']} (torch {versions['torch']}, Python {python})"


if __name__ == "__main__":
    sys.exit(main())
