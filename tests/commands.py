"""Commands of pfcluster in this process: the `main` of the script, without another Python that imports torch. `logs`,
which replaces its process by `tail`, has a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

from pfcluster.cli.main import main
from tests.tiny import LAUNCH, ROOT

HANDLED = (signal.SIGINT, signal.SIGTERM)


def command(
    *words: object, folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; `environment` replaces all variables. Returns its exit code and output."""
    arguments, output, errors = [str(word) for word in words], io.StringIO(), io.StringIO()
    variables = os.environ.copy() if environment is None else environment
    if words[0] == "logs":
        return subprocess.run(
            [*LAUNCH, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
    with (
        _working_folder(folder),
        _signal_handlers_kept(),
        mock.patch.dict(os.environ, variables, clear=True),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _working_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
