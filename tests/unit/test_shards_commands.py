"""Command lines of shards/build.py and shards/inspect.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.commands import command
from tests.photos import (
    ROOT,
    SIZE,
    contents,
    picture,
    run,
)


@pytest.mark.slow
def test_commands_work_from_the_folder_of_the_scripts(raw: Path, built: Path, tmp_path: Path) -> None:
    """The folder has an `inspect.py`, like the standard library. Also compares with a build in Python."""
    arguments = ["--size", SIZE, "--align", "none", "--workers", 1, "--samples-per-shard", 8, "--val-share", 0.25]
    done = run("build.py", "--input", raw, "--output", tmp_path / "out", *arguments, cwd=ROOT / "shards")
    assert done.returncode == 0, done.stderr
    assert "36 photos in, 36 faces out" in done.stdout
    assert contents(tmp_path / "out") == contents(built)
    sheet = tmp_path / "sheet.png"
    inspected = run("inspect.py", built, "--sheet", sheet, "--per-class", 4, "--verify", cwd=ROOT / "shards")
    assert inspected.returncode == 0, inspected.stderr
    assert "6 shards have the manifest's checksums" in inspected.stdout
    with Image.open(sheet) as written:
        assert written.size[0] > 4 * SIZE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{tmp}/nowhere"], "does not exist"),
        (["--input", "{tmp}/empty"], "contains no photos"),
        (["--input", "{tmp}/unknown"], "labels are 'bored'"),
        (["--input", "{raw}", "--val-share", "1.5"], "--val-share must lie in [0, 1)"),
        (["--input", "{raw}", "--val-share", "0.6", "--test-share", "0.5"], "must be < 1"),
        (["--input", "{raw}", "--test-input", "{raw}", "--test-share", "0.5"], "use only one of them"),
        (["--input", "{raw}", "--size", "huge"], "invalid"),
        (["--input", "{raw}", "--align", "retina"], "invalid"),
        (["--input", "{raw}", "--speed", "9"], "--speed"),
        (["--input", "{raw}", "--output", "{tmp}/file/out"], "cannot be written"),
        (["--input", "{raw}", "--output", "{raw}"], "contains other files"),
    ],
)
def test_invalid_commands_exit_with_2_and_a_message(
    raw: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "unknown" / "bored").mkdir(parents=True)
    picture("sad", 1).save(tmp_path / "unknown" / "bored" / "1.png")
    words = [argument.format(tmp=tmp_path, raw=raw) for argument in arguments]
    if "--output" not in words:
        words += ["--output", str(tmp_path / "out")]
    done = command("build", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert message in " ".join((done.stdout + done.stderr).split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_inspect_names_damage_and_exits_with_2(damaged: Path) -> None:
    tar = damaged / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    done = command("inspect", damaged, "--verify")
    assert done.returncode == 2
    assert "train-00000.tar has changed" in done.stderr
    assert "Traceback" not in done.stderr
    for arguments in (
        ["/nowhere"],
        [damaged, "--per-class", 0],
        [damaged, "--sheet", "/nowhere/x.png"],
        [damaged, "--x"],
    ):
        done = command("inspect", *arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
