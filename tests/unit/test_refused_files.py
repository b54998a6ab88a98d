"""Folders, terminals and disks that refuse: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pfcluster.config import DataConfig, SyntheticConfig
from pfcluster.data.dataset import cache_train_split, open_dataset
from pfcluster.data.types import DataError
from pfcluster.system.os_errors import retry_transient
from tests.syscalls import bound_by_permissions

PROGRAM = [sys.executable, "-m", "pfcluster"]


def run(
    words: list[str], folder: Path, environment: dict[str, str] | None = None, stdout: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *words],
        cwd=folder,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        check=False,
        preexec_fn=bound_by_permissions,
    )


def sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """The error of a command that ends with 2: a single line, no traceback."""
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder in which nothing can be written."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--executor", "local", "--output", "{closed}/runs"],
        ["pretrain", "--executor", "local", "--output", "{closed}/runs"],
        ["sweep", "--executor", "local", "--output", "{closed}/sweep"],
        ["reproduce", "--miniature", "--output", "{closed}/out"],
        ["build", "--input", "{closed}", "--output", "{closed}/shards"],
    ],
    ids=lambda words: words[0],
)
def test_an_output_that_cannot_be_written_is_one_sentence(words: list[str], closed: Path, tmp_path: Path) -> None:
    error = sentence(run([word.format(closed=closed) for word in words], tmp_path))
    assert str(closed) in error


@pytest.mark.slow
def test_a_full_standard_output_is_one_sentence(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        error = sentence(run(["--help"], tmp_path, stdout=full))
    finally:
        os.close(full)
    assert "No space left on device (ENOSPC)" in error


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_question_marks(tmp_path: Path) -> None:
    done = run(["--help"], tmp_path, {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    done = run(["evaluate", "caf\u00e9-\u4e2d"], tmp_path, {"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 2
    assert b"caf\xe9-?" in done.stderr


@pytest.mark.slow
def test_a_user_without_a_home_folder_is_told_what_to_set(tmp_path: Path) -> None:
    """As in a container that runs under a user id of its own."""
    code = "from pfcluster.data.storage import default_cache; print(default_cache())"
    hidden = {"HOME", "XDG_CACHE_HOME", "PFCLUSTER_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def become_unknown() -> None:
        if os.getuid() == 0:
            os.setresuid(54321, 0, 0)

    def cache(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment | variables,
            preexec_fn=become_unknown,
            capture_output=True,
            text=True,
            check=False,
        )

    if os.getuid() == 0:
        assert "set PFCLUSTER_CACHE, or data.cache" in cache().stderr
    assert cache(PFCLUSTER_CACHE="/scratch").stdout == "/scratch\n"
    assert cache(XDG_CACHE_HOME="/scratch").stdout == "/scratch/pfcluster\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"file systems cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_cache_is_an_error_before_decoding_and_leaves_nothing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the space between the check and the reservation: no SIGBUS, no file is left."""
    config = DataConfig(
        size=32, cache_mode="host", cache=str(small_disk), synthetic=SyntheticConfig(train=270, validation=4, test=4)
    )
    taken = small_disk / "other"
    taken.write_bytes(bytes(600_000))
    monkeypatch.setattr("pfcluster.data.in_memory.RESERVE", 1e9)
    train = cache_train_split(open_dataset(config, 0), config, torch.device("cpu")).train
    with pytest.raises(DataError, match=r"cannot be used: No space left on device \(ENOSPC\); free space there"):
        train.batch(torch.arange(2))
    assert {path.suffix for path in (small_disk / "decoded").iterdir()} == {".lock"}
    taken.unlink()
    assert train.batch(torch.arange(2)).images.shape == (2, 3, 32, 32)


def test_storage_that_fails_for_a_moment_is_tried_again(tmp_path: Path) -> None:
    """/proc/self/mem gives EIO where nothing is mapped, until the link points elsewhere."""
    path = tmp_path / "file"
    path.symlink_to("/proc/self/mem")
    tries = []

    def read() -> bytes:
        tries.append(path.resolve())
        if len(tries) == 3:
            path.unlink()
            path.write_bytes(b"content")
        with open(path, "rb") as file:
            return file.read(7)

    assert retry_transient(read, (0.0, 0.0, 0.0)) == b"content"
    assert len(tries) == 3


@pytest.mark.parametrize("delays", [(), (0.0,)])
def test_other_errors_are_raised_at_once(tmp_path: Path, delays: tuple[float, ...]) -> None:
    calls: list[int] = []

    def read() -> bytes:
        calls.append(1)
        return (tmp_path / "none").read_bytes()

    with pytest.raises(FileNotFoundError):
        retry_transient(read, delays)
    assert calls == [1]
