"""The flight recorder's variables, and what it writes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pfcluster.training.flight_recorder import record_collectives, write_collectives


def test_variables_are_set_for_several_processes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WORLD_SIZE": "1", "TORCH_FR_BUFFER_SIZE": "77"}
    monkeypatch.setattr(os, "environ", environment)
    record_collectives(tmp_path)
    assert len(environment) == 2
    environment["WORLD_SIZE"] = "2"
    record_collectives(tmp_path)
    assert environment["TORCH_FR_BUFFER_SIZE"] == "77"
    assert environment["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert environment["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path.resolve()}/flight_recorder/nccl-timeout-rank-"


def test_records_are_written_and_an_unwritable_folder_raises_nothing(tmp_path: Path) -> None:
    write_collectives(tmp_path, 3)
    for backend in ("gloo", "nccl"):
        recorded = pickle.loads((tmp_path / f"flight_recorder/{backend}-rank-3.pickle").read_bytes())
        assert "entries" in recorded
    write_collectives(tmp_path / "missing", 3)
    assert not (tmp_path / "missing").exists()
