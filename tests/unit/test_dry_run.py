"""`--dry-run`: memory of every engine for a layout that this machine does not have."""

from __future__ import annotations

import re

import pytest

from pfcluster.cli.main import main
from pfcluster.config import presets
from pfcluster.profiling.flops import profile

FACES = {"train": 96, "validation": 32, "test": 32, "identities": 16}
TINY = ["--preset", "demo", *(word for key, n in FACES.items() for word in (f"--data.synthetic.{key}", str(n)))]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, with whitespace collapsed."""
    code = main([*arguments])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), " ".join(captured.err.split())


def peaks(output: str) -> dict[str, float]:
    """Peak MiB of each engine."""
    rows = re.findall(r"│ (ddp|zero[123]|fsdp2) │((?: [\d.,]+ │){6})", output)
    return {name: float(cells.split("│")[5].replace(",", "")) for name, cells in rows}


@pytest.mark.slow
def test_memory_of_every_engine_on_512_gpus(capsys, tmp_path):
    options = ["--preset", "mini", "--nodes", "64", "--gpus-per-node", "8", "--batch-size", "1024"]
    options += ["--output", str(tmp_path / "runs")]
    code, output, _ = run(capsys, "pf-mag", *TINY, "--dry-run", "--pf-mag.r1", "0", *options)
    assert code == 0
    assert "64 x 8 GPUs, 2 images a step each" in output
    without_penalty = peaks(output)
    assert sorted(without_penalty) == ["ddp", "fsdp2", "zero1", "zero2", "zero3"]
    assert without_penalty["zero2"] < without_penalty["ddp"]
    with_penalty = peaks(run(capsys, "pf-mag", *TINY, "--dry-run", "--pf-mag.r1", "0.1", *options)[1])
    assert sorted(with_penalty) == ["ddp", "fsdp2", "zero1", "zero2"]  # ZeRO-3 cannot differentiate twice
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_rate_follows_assumed_tflops(capsys):
    options = ["pretrain", *TINY, "--dry-run", "--nodes", "2", "--gpus-per-node", "4", "--batch-size", "64"]
    _, output, _ = run(capsys, *options, "--assumed-tflops", "50")
    rate = float(re.search(r"mae: ([\d,]+) images/s", output)[1].replace(",", ""))
    assert "each of 8 GPUs sustains 50 TFLOP/s" in output
    assert rate == pytest.approx(8 * 50e12 / profile(presets.recipe("demo")["mae"], 8).flops, rel=1e-3)


def test_engines_without_an_option_are_named(capsys):
    options = ["--processes", "4", "--engine.fsdp-shard-size", "2"]
    code, output, _ = run(capsys, "pretrain", *TINY, "--dry-run", *options)
    assert code == 0
    assert sorted(peaks(output)) == ["fsdp2"]
    assert "not ddp: engine.backend must be one of fsdp2" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dry-run", "--nodes", "64", "--gpus-per-node", "8"], "= 512, got 64; 512 would do"),
        (
            ["--dry-run", "--nodes", "3", "--engine.grad-accumulation-steps", "2"],
            "engine.grad_accumulation_steps 2 = 6, got 64; 60 or 66 would do",
        ),
        (["--dry-run", "--nodes", "0"], "--nodes must be at least 1"),
        (["--dry-run", "--assumed-tflops", "-1"], "--assumed-tflops must be positive"),
        (
            ["--dry-run", "--processes", "4", "--engine.fsdp-shard-size", "3"],
            "must divide the number of processes (4), got 3",
        ),
    ],
)
def test_impossible_layouts_are_refused(capsys, options, words):
    code, _, errors = run(capsys, "pretrain", *TINY, *options)
    assert code == 2
    assert words in errors


@pytest.mark.slow
def test_images_cached_on_the_device_are_counted(capsys):
    code, output, _ = run(capsys, "pretrain", *TINY, "--data.cache-mode", "device", "--dry-run")
    assert code == 0
    side = presets.recipe("demo")["mae"].data.size
    assert f"plus {96 * 3 * side**2 / 2**20:.1f} MiB of each GPU for the images" in output
    _, output, _ = run(capsys, "pretrain", *TINY, "--dry-run")
    assert "of data.cache_mode device" not in output


def test_initial_weights_are_opened_or_named_as_absent(capsys, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_text("no weights")
    code, _, errors = run(capsys, "finetune", *TINY, "--dry-run", "--model.init", str(weights))
    assert code == 2
    assert f"model.init: {weights} holds no weights that can be read" in errors
    code, output, errors = run(capsys, "finetune", *TINY, "--dry-run", "--model.init", "elsewhere/run")
    assert code == 0
    assert "mae-vit: model.init elsewhere/run is not on this machine" in output + errors
