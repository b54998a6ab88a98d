"""Engines from the command line: choice, change on resume, the doctor, and consolidated checkpoints."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from safetensors.torch import load_file

from tests.commands import command
from tests.smoke.test_launch import TINY, launch, wait_for_step
from tests.tiny import LAUNCH, ROOT


@pytest.mark.slow
def test_run_of_two_processes_records_the_engine_and_the_reason(tmp_path):
    done = command("pretrain", *TINY, "--processes", "2", "--optim.ema", "0.9", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "mae/seed-0"
    result = json.loads((folder / "result.json").read_text())
    assert result["processes"] == 2
    assert result["engine"]["backend"] == "zero2"
    assert "differs from one process by no more than" in result["engine"]["reason"]
    log = (folder / "logs/rank-0.log").read_text()
    assert "engine zero2 (differs from" in log
    assert "slowest rank: " in log
    assert "Warning" not in log
    assert result["checkpoints"]["written"] >= 3
    assert result["checkpoints"]["bytes"] > 0

    made = command("consolidate", str(folder))
    assert made.returncode == 0, made.stderr
    assert str(folder / "weights.safetensors") in made.stdout.replace("\n", "")
    assert "encoder.cls_token" in load_file(folder / "weights.safetensors")
    tuned = ["finetune", *TINY, "--max-steps", "2", "--model.init", str(folder / "weights.safetensors")]
    started = command(*tuned, "--output", str(tmp_path))
    assert started.returncode == 0, started.stderr


@pytest.mark.slow
def test_interrupted_run_continues_with_another_engine_and_a_warning(tmp_path):
    common = ["pf-mag", *TINY, "--epochs", "10", "--output", str(tmp_path)]
    first = [*common, "--processes", "2", "--engine.backend", "fsdp2"]
    launcher = subprocess.Popen([*LAUNCH, *first], cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / "pf-vit/seed-0"
    wait_for_step(launcher, folder, 6)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=300) == 130
    shorter = [*common, "--engine.backend", "ddp", "--max-steps", "30"]
    refused = command(*shorter)
    assert refused.returncode == 2
    assert "belongs to another config: max_steps" in refused.stderr
    done = command(*common, "--engine.backend", "ddp", "--engine.grad-accumulation-steps", "2")
    assert done.returncode == 0, done.stderr
    assert "engine.backend was 'fsdp2' and is 'ddp' from here on" in (folder / "warnings.log").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert (result["engine"]["backend"], result["processes"], result["steps"]) == ("ddp", 1, 60)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 61))


@pytest.mark.slow
def test_doctor_tests_engines_bandwidth_and_folder(tmp_path):
    results = tmp_path / "results.json"
    words = ["doctor", "--processes", "2", "--backends", "ddp", "fsdp2", "zero2", "--device", "cpu"]
    done = launch(*words, "--folder", str(tmp_path), "--json", str(results))  # its ranks print
    assert done.returncode == 0, done.stderr
    for phrase in ("2 ranks", "difference to one process", "all-reduce", "seen by all", "engine auto takes zero2"):
        assert phrase in done.stdout
    values = json.loads(results.read_text())
    assert [row["ok"] for row in values["parity"]] == [True] * 6
    assert all(0 < row["weights"] < 1e-6 for row in values["parity"])
    assert len(values["bandwidth"]) == 9
    assert not list(tmp_path.glob(".doctor-*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pf-mag", "--engine.backend", "zero3", "--pf-mag.r1", "1"], "ZeRO-3 cannot differentiate twice"),
        (
            ["pretrain", "--engine.backend", "zero2", "--engine.fsdp-shard-size", "2"],
            "engine.backend must be one of fsdp2",
        ),
        (
            ["pretrain", "--processes", "3", "--batch-size", "48", "--engine.fsdp-shard-size", "2"],
            "must divide the number",
        ),
        (["pf-mag", "--discriminator-optim.ema", "0.9"], "average is not used"),
        (["pretrain", "--engine.backend", "zero4"], "zero4"),
        (["consolidate", "nowhere"], "neither a run with checkpoints nor a checkpoint"),
        (["doctor", "--processes", "0"], "--processes must be at least 1"),
    ],
)
def test_invalid_engine_options_end_with_one_sentence(tmp_path, arguments, words):
    options = ["--output", str(tmp_path / "runs")] if arguments[0] not in ("consolidate", "doctor") else []
    done = command(*arguments, *options)
    assert done.returncode == 2, done.stdout
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()
