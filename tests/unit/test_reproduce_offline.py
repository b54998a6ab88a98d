"""`pfcluster reproduce --dry-run` plans without the network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from rich.console import Console

from pfcluster.cli.reproduce import parse

CELLS = ("--cells", "sl-vit", "pf-vit", "identity-net-resnet")


def test_a_dry_run_plans_what_a_run_would_download_and_does_not_connect(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    arguments = ["--datasets", built.name, "--data-root", str(built.parent), "--dry-run", *CELLS]
    reproduction = parse(arguments)
    assert set(CELLS[1:]) <= {run.name for run in reproduction.runs}
    console = Console(record=True, width=200)
    reproduction.print_downloads(console)
    text = console.export_text()
    assert "not checked without the network: timm:vit_base_patch16_224.augreg_in1k" in text
    assert "timm's resnet50, the face recognition net" in text
    assert not (tmp_path / "empty").exists()
    unknown = parse([*arguments, "--sl-weights", "timm:no_such_net"])
    assert "sl-vit" not in {run.name for run in unknown.runs}
    assert "no_such_net" in unknown.settings.unavailable["timm"]
