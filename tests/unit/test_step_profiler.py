"""Traces of training steps, and runs that are out of memory."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config.io import to_json
from pfcluster.launch.worker import ExitStatus, work
from pfcluster.training import run
from pfcluster.training.errors import is_communication_error
from tests import tiny


def test_profile_traces_the_steps_after_the_first_three(tmp_path: Path) -> None:
    assert run(replace(tiny.config("mae"), profile=2), tmp_path)["status"] == "finished"
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "trace-after-step-00000003.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("ProfilerStep#") for name in names if "ProfilerStep" in name) >= 2
    assert any("Optimizer.step" in name for name in names)


def test_out_of_memory_names_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    too_large = replace(tiny.config("mae"), batch_size=2**42)  # 32 TiB of sample numbers
    (tmp_path / "config.json").write_text(to_json(too_large))
    status = work(tmp_path / "config.json", tmp_path / "run", None, 1)
    assert status == ExitStatus(1, "memory", status.error)
    said = capsys.readouterr().err
    assert f"error: {status.error}" in said
    assert "Traceback" not in said
    for option in ("batch_size", "engine.grad_accumulation_steps", "engine.activation_checkpointing", "fsdp2"):
        assert option in status.error


def test_a_gpu_out_of_memory_is_no_lost_rank() -> None:
    assert not is_communication_error(torch.OutOfMemoryError("CUDA out of memory while NCCL connects"))
