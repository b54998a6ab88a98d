"""Files that `pfcluster inspect` writes: refused before any work, and named if they cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from pfcluster.cli import inspect as module
from pfcluster.cli.inspect import main
from pfcluster.data.manifest import Manifest


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--sheet", "x.foo", "must be a file that ends in .png or .jpg or .jpeg or .webp"),
        ("--sheet", "x", "must be a file that ends in"),
        ("--sheet", "nowhere/x.png", "nowhere is not a folder; create it first"),
        ("--sheet", "folder.png", "is a folder; pass the path of a file in it"),
        ("--duplicates", "x.png", "must be a file that ends in .csv"),
        ("--duplicates", "nowhere/x.csv", "nowhere is not a folder; create it first"),
        ("--duplicates", "file/x.csv", "file is not a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(
    built, tmp_path, capsys, monkeypatch, option, name, message
):
    def unexpected(folder: Path) -> Manifest:
        raise AssertionError("work was done")

    monkeypatch.setattr(module, "load_manifest", unexpected)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    assert main([str(built), option, str(tmp_path / name)]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert f"{option} {tmp_path / name}" in output.err
    assert output.out == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main([str(built), "--sheet", str(tmp_path / "locked" / "x.png")]) == 2
    assert "locked cannot be written; check its permissions" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "name"), [("--sheet", "x.png"), ("--duplicates", "x.csv")])
def test_an_error_of_the_disk_names_the_file_and_what_to_do(built, tmp_path, capsys, monkeypatch, option, name):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", ".x.tmp")

    with monkeypatch.context() as patch:
        patch.setattr("pfcluster.system.atomic_files.os.fsync", full)
        assert main([str(built), option, str(tmp_path / name)]) == 2
    assert f"{tmp_path / name}: No space left on device (ENOSPC); free space there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([str(built), option, str(tmp_path / name)]) == 0
    assert (tmp_path / name).stat().st_size > 0
    if option == "--sheet":
        with Image.open(tmp_path / name) as sheet:
            assert sheet.format == "PNG"
