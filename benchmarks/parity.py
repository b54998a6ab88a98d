"""Tests of the claims "every engine trains like one process" and "a run resumes on any layout", as tables.

    python -m benchmarks.parity [--kills 10] [--output benchmarks/results/parity.md]

Parity: tiny nets, real objectives, fp32, 1, 2 and 4 gloo processes (pfcluster/training/parity.py; four steps, with
gradient clipping). Resume: PF-MAG on synthetic faces, 12 steps; the checkpoint of step 9 of each layout is resumed by
each layout. Killed: one of two ranks is sent SIGKILL at a random time and the run is started again, --kills times.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path

import torch

from benchmarks.steps import processor
from pfcluster.checkpoint import store
from pfcluster.config import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    RunConfig,
    SyntheticConfig,
    presets,
)
from pfcluster.config.io import to_json
from pfcluster.distributed.process_group import world
from pfcluster.launch.processes import rank_environments
from pfcluster.runs.folder import (
    CHECKPOINTS_DIR,
    METRICS_FILE,
    REQUESTED_CONFIG_FILE,
    checkpoint_steps,
    newest_checkpoint_step,
    step_folder,
)
from pfcluster.runs.metrics_file import read_metrics
from pfcluster.training.parity import MODEL, compare, zero_key_biases

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
OBJECTIVES = ("mae", "finetune", "pf_mag")
LAYOUTS = (("ddp", 1), ("ddp", 2), ("fsdp2", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 4), ("zero2", 4))


def start_ranks(module: str, arguments: list[str], ranks: int) -> list[subprocess.Popen[str]]:
    """Start the ranks of a process group, one thread each."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in rank_environments(ranks, 1)
    ]


def finish(started: list[subprocess.Popen[str]]) -> None:
    """Wait for processes. Raises RuntimeError with their output if one fails."""
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(outputs))


def one_rank(result: Path) -> None:
    """Compare all engines on the process group of the environment; rank 0 writes the result."""
    torch.set_num_threads(1)
    with world("cpu", 120) as group:
        differences: dict[str, list[float]] = {}
        for backend, objective, parts in product(BACKENDS, OBJECTIVES, (1, 2)):
            options = EngineConfig(backend=backend, device="cpu", grad_accumulation_steps=parts)  # type: ignore[arg-type]
            difference = compare(backend, objective, group, engine=options)  # type: ignore[arg-type]
            differences[f"{backend}/{objective}/{parts}"] = [difference.weights, difference.metrics]
        if group.is_main:
            result.write_text(json.dumps(differences))


def parity(folder: Path) -> str:
    """Largest relative difference of weights by engine, objective, processes and micro-batches."""
    differences: dict[str, list[float]] = {}
    for ranks in (1, 2, 4):
        result = folder / f"parity-{ranks}.json"
        finish(start_ranks("benchmarks.parity", ["--rank", str(result)], ranks))
        differences |= {f"{name}/{ranks}": values for name, values in json.loads(result.read_text()).items()}
    columns = list(product(OBJECTIVES, (1, 2)))
    lines = ["| engine | processes | " + " | ".join(f"{name}, {parts}" for name, parts in columns) + " |"]
    lines += ["| --- | ---: " + "| ---: " * len(columns) + "|"]
    for backend, ranks in product(BACKENDS, (1, 2, 4)):
        cells = [f"{differences[f'{backend}/{name}/{parts}/{ranks}'][0]:.1e}" for name, parts in columns]
        lines.append(f"| {backend} | {ranks} | " + " | ".join(cells) + " |")
    worst = max(value for values in differences.values() for value in values)
    return "\n".join(lines) + f"\n\nLargest of all differences, losses and gradient norms included: {worst:.1e}.\n"


def short_run(role: str, steps: int, engine: EngineConfig) -> RunConfig:
    """A small run on rendered faces with weight averaging and gradient clipping."""
    base = presets.recipe("mini")[role]
    faces = SyntheticConfig(train=96, validation=32, test=40, identities=12, nuisance=0.3)
    return replace(
        base,
        epochs=1000,
        max_steps=steps,
        batch_size=16,
        data=DataConfig(size=32, synthetic=faces),
        model=MODEL,
        optim=replace(base.optim, clip_norm=1.0, ema=0.8),
        engine=engine,
    )


def config(backend: str, *, steps: int = 12) -> RunConfig:
    """A small PF-MAG run with weight averaging, gradient accumulation and gradient clipping."""
    engine = EngineConfig(backend=backend, device="cpu", grad_accumulation_steps=2, log_every=1, timeout=30)  # type: ignore[arg-type]
    base = short_run("pf-vit", steps, engine)
    return replace(
        base,
        checkpoint=CheckpointConfig(every_steps=3),
        evaluate=EvaluateConfig(n_poker_faces=16),
        pf_mag=replace(base.pf_mag, warmup_steps=3, loss_balancing_steps=2),
    )


def train(folder: Path, values: RunConfig, ranks: int) -> list[subprocess.Popen[str]]:
    """Start a run's processes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(values))
    return start_ranks(
        "pfcluster.launch.worker", [str(folder / REQUESTED_CONFIG_FILE), str(folder), "--threads", "1"], ranks
    )


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, by `group/name`."""
    steps = checkpoint_steps(folder / CHECKPOINTS_DIR)
    tensors = store.verify(step_folder(folder / CHECKPOINTS_DIR, steps[-1])).tensors()
    return {f"{group}/{name}": value for group, values in tensors.items() for name, value in values.items()}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative difference of weights and their averages; 0 only if all tensors, moments included, are bit-identical."""
    if all(torch.equal(ours[name], value) for name, value in theirs.items()):
        return 0.0
    values, reference = (
        zero_key_biases({name: value for name, value in tensors.items() if "_optimizer/" not in name})
        for tensors in (ours, theirs)
    )
    norm = torch.stack([value.double().norm() for value in reference.values()]).norm()
    return float(torch.stack([(values[name] - reference[name]).double().norm() for name in reference]).norm() / norm)


def losses(folder: Path) -> list[float]:
    """Training losses after step 9."""
    return [line["loss"] for line in read_metrics(folder, "train") if line["step"] > 9]


def resume(folder: Path) -> str:
    """Difference of runs that changed their layout after step 9 to the uninterrupted run of the first layout."""
    uninterrupted = {layout: folder / f"whole-{layout[0]}-{layout[1]}" for layout in LAYOUTS}
    for (backend, ranks), path in uninterrupted.items():
        finish(train(path, config(backend), ranks))
    lines = ["| from \\\\ to | " + " | ".join(f"{backend} × {ranks}" for backend, ranks in LAYOUTS) + " |"]
    lines += ["| --- " + "| ---: " * len(LAYOUTS) + "|"]
    same_losses = True
    for source in LAYOUTS:
        cells = []
        for backend, ranks in LAYOUTS:
            path = folder / f"{source[0]}{source[1]}-{backend}{ranks}"
            checkpoint = step_folder(uninterrupted[source] / CHECKPOINTS_DIR, 9)
            shutil.copytree(checkpoint, step_folder(path / CHECKPOINTS_DIR, 9))
            finish(train(path, config(backend), ranks))
            difference = distance(last_tensors(path), last_tensors(uninterrupted[source]))
            cells.append(f"{difference:.0e}".replace("0e+00", "0"))
            pairs = zip(losses(path), losses(uninterrupted[source]), strict=True)
            same_losses &= all(abs(ours - theirs) <= 1e-5 * abs(theirs) for ours, theirs in pairs)
        lines.append(f"| {source[0]} × {source[1]} | " + " | ".join(cells) + " |")
    verdict = (
        "equal to 1e-5 in all cells, so the same samples in the same order" if same_losses else "NOT equal in all cells"
    )
    return (
        "\n".join(lines)
        + f"\n\n0: weights, averages and both optimizers' moments bit-identical. Losses after step 9: {verdict}.\n"
    )


def killed(folder: Path, kills: int) -> str:
    """A run that repeatedly loses a rank, compared with an uninterrupted run."""
    values, ranks, rng = config("fsdp2", steps=60), 2, random.Random(0)
    finish(train(folder / "uninterrupted", values, ranks))
    kills_made = []
    for _ in range(kills):
        started = train(folder / "killed", values, ranks)
        first = newest_checkpoint_step(folder / "killed")
        deadline = first + rng.randint(4, max(4, 60 // kills))
        victim, metrics = rng.randrange(ranks), folder / "killed" / METRICS_FILE
        while not (metrics.exists() and f'"step": {deadline},' in metrics.read_text()):
            time.sleep(0.01)
            assert all(process.poll() is None for process in started), [p.communicate()[0] for p in started]
        time.sleep(rng.random() * 0.2)
        started[victim].kill()
        codes = [process.wait() for process in started]
        kills_made.append(f"rank {victim} after step {deadline} (other rank: exit code {codes[1 - victim]})")
    finish(train(folder / "killed", values, ranks))
    difference = distance(last_tensors(folder / "killed"), last_tensors(folder / "uninterrupted"))
    verdict = "bit-identical" if difference == 0 else f"relative difference {difference:.1e}"
    return (
        f"{kills} kills of an FSDP2 run on 2 ranks, 60 steps: {'; '.join(kills_made)}.\n\n"
        f"Final weights, averages and moments compared with the uninterrupted run: {verdict}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write")
    parser.add_argument("--rank", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        one_rank(options.rank)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            "## Parity: relative difference of all weights to one process",
            "Columns: objective, micro-batches per step.",
            parity(folder),
            "## Resume: relative difference of the final weights to the uninterrupted run of the row's layout",
            resume(folder),
            "## Killed",
            killed(folder, options.kills),
        ]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    print(text)
    if options.output:
        head = (
            f"# Parity, resume, kills\n\n`python -m benchmarks.parity --kills {options.kills} --output"
            f" benchmarks/results/parity.md`, {date.today()}, {processor()}, torch {torch.__version__}, gloo, fp32.\n\n"
        )
        options.output.write_text(head + text)


if __name__ == "__main__":
    main()
