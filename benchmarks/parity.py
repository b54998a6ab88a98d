"""The tables behind "every engine trains what one process trains" and "a run goes on anywhere".

    python -m benchmarks.parity [--kills 10] [--output benchmarks/results/parity.md]

Parity: tiny nets, real objectives, fp32, 1, 2 and 4 gloo processes (pfcluster/training/parity.py; four steps,
clipping on).
Resume: PF-MAG on the embedded faces, 12 steps; the checkpoint of step 9 of each layout is gone on with by each layout.
Killed: one of two ranks is sent SIGKILL at a random moment, and the run started again, so many times.
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
from pfcluster.launch.local import rank_environments
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, checkpoint_steps, step_folder
from pfcluster.training.parity import MODEL, compare, zero_key_biases

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
OBJECTIVES = ("mae", "finetune", "pf_mag")
LAYOUTS = (("ddp", 1), ("ddp", 2), ("fsdp2", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 4), ("zero2", 4))


def ranks_of(module: str, arguments: list[str], ranks: int) -> list[subprocess.Popen[str]]:
    """Processes of a group, one thread each."""
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
    """Wait for processes that must end well. Raises RuntimeError with what they said."""
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(said))


def one_rank(result: Path) -> None:
    """Compare everything on the process group of the environment; rank 0 writes."""
    torch.set_num_threads(1)
    with world("cpu", 120) as here:
        found: dict[str, list[float]] = {}
        for backend, objective, parts in product(BACKENDS, OBJECTIVES, (1, 2)):
            options = EngineConfig(backend=backend, device="cpu", grad_accumulation_steps=parts)  # type: ignore[arg-type]
            difference = compare(backend, objective, here, engine=options)  # type: ignore[arg-type]
            found[f"{backend}/{objective}/{parts}"] = [difference.weights, difference.metrics]
        if here.is_main:
            result.write_text(json.dumps(found))


def parity(folder: Path) -> str:
    """Largest relative difference of weights by engine, objective, processes and micro-batches."""
    found: dict[str, list[float]] = {}
    for ranks in (1, 2, 4):
        result = folder / f"parity-{ranks}.json"
        finish(ranks_of("benchmarks.parity", ["--rank", str(result)], ranks))
        found |= {f"{name}/{ranks}": values for name, values in json.loads(result.read_text()).items()}
    columns = list(product(OBJECTIVES, (1, 2)))
    lines = ["| engine | processes | " + " | ".join(f"{name}, {parts}" for name, parts in columns) + " |"]
    lines += ["| --- | ---: " + "| ---: " * len(columns) + "|"]
    for backend, ranks in product(BACKENDS, (1, 2, 4)):
        cells = [f"{found[f'{backend}/{name}/{parts}/{ranks}'][0]:.1e}" for name, parts in columns]
        lines.append(f"| {backend} | {ranks} | " + " | ".join(cells) + " |")
    worst = max(value for values in found.values() for value in values)
    return "\n".join(lines) + f"\n\nLargest of all differences, losses and gradient norms included: {worst:.1e}.\n"


def config(backend: str, *, steps: int = 12) -> RunConfig:
    """A small PF-MAG run with an average, accumulation and clipping."""
    base = presets.recipe("mini")["pf-vit"]
    faces = SyntheticConfig(train=96, validation=32, test=40, identities=12, nuisance=0.3)
    return replace(
        base,
        epochs=1000,
        max_steps=steps,
        batch_size=16,
        data=DataConfig(size=32, synthetic=faces),
        model=MODEL,
        optim=replace(base.optim, clip_norm=1.0, ema=0.8),
        engine=EngineConfig(backend=backend, device="cpu", grad_accumulation_steps=2, log_every=1, timeout=30),  # type: ignore[arg-type]
        checkpoint=CheckpointConfig(every_steps=3),
        evaluate=EvaluateConfig(n_poker_faces=16),
        pf_mag=replace(base.pf_mag, warmup_steps=3, loss_balancing_steps=2),
    )


def train(folder: Path, values: RunConfig, ranks: int) -> list[subprocess.Popen[str]]:
    """Start a run's processes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(values))
    return ranks_of(
        "pfcluster.launch.worker", [str(folder / REQUESTED_CONFIG_FILE), str(folder), "--threads", "1"], ranks
    )


def last(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a run's last checkpoint, `group/name` -> tensor."""
    steps = checkpoint_steps(folder / "checkpoints")
    found = store.verify(step_folder(folder / "checkpoints", steps[-1])).tensors()
    return {f"{group}/{name}": value for group, values in found.items() for name, value in values.items()}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative difference of weights and averages; 0 only where moments are bit-identical too."""
    if all(torch.equal(ours[name], value) for name, value in theirs.items()):
        return 0.0
    mine, other = (
        zero_key_biases({name: value for name, value in each.items() if "_optimizer/" not in name})
        for each in (ours, theirs)
    )
    norm = torch.stack([value.double().norm() for value in other.values()]).norm()
    return float(torch.stack([(mine[name] - other[name]).double().norm() for name in other]).norm() / norm)


def losses(folder: Path) -> list[float]:
    """Losses of the steps after the ninth."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train" and line["step"] > 9]


def resume(folder: Path) -> str:
    """Weights of runs that changed their layout after step 9, against the unbroken run of the first layout."""
    whole = {layout: folder / f"whole-{layout[0]}-{layout[1]}" for layout in LAYOUTS}
    for (backend, ranks), path in whole.items():
        finish(train(path, config(backend), ranks))
    lines = ["| from \\\\ to | " + " | ".join(f"{backend} × {ranks}" for backend, ranks in LAYOUTS) + " |"]
    lines += ["| --- " + "| ---: " * len(LAYOUTS) + "|"]
    same_losses = True
    for source in LAYOUTS:
        cells = []
        for backend, ranks in LAYOUTS:
            path = folder / f"{source[0]}{source[1]}-{backend}{ranks}"
            kept = step_folder(whole[source] / "checkpoints", 9)
            shutil.copytree(kept, step_folder(path / "checkpoints", 9))
            finish(train(path, config(backend), ranks))
            cells.append(f"{distance(last(path), last(whole[source])):.0e}".replace("0e+00", "0"))
            pairs = zip(losses(path), losses(whole[source]), strict=True)
            same_losses &= all(abs(ours - theirs) <= 1e-5 * abs(theirs) for ours, theirs in pairs)
        lines.append(f"| {source[0]} × {source[1]} | " + " | ".join(cells) + " |")
    words = (
        "equal to 1e-5 in all cells: the same samples in the same order" if same_losses else "NOT equal in all cells"
    )
    return (
        "\n".join(lines)
        + f"\n\n0: weights, averages and both optimizers' moments bit-identical. Losses after step 9: {words}.\n"
    )


def killed(folder: Path, kills: int) -> str:
    """One run that loses a rank again and again, against one that never does."""
    values, ranks, chance = config("fsdp2", steps=60), 2, random.Random(0)
    finish(train(folder / "quiet", values, ranks))
    moments = []
    for _ in range(kills):
        started = train(folder / "killed", values, ranks)
        first = max([0, *checkpoint_steps(folder / "killed" / "checkpoints")])
        deadline = first + chance.randint(4, max(4, 60 // kills))
        victim, metrics = chance.randrange(ranks), folder / "killed" / "metrics.jsonl"
        while not (metrics.exists() and f'"step": {deadline},' in metrics.read_text()):
            time.sleep(0.01)
            assert all(process.poll() is None for process in started), [p.communicate()[0] for p in started]
        time.sleep(chance.random() * 0.2)
        started[victim].kill()
        codes = [process.wait() for process in started]
        moments.append(f"rank {victim} after step {deadline} (other rank: exit code {codes[1 - victim]})")
    finish(train(folder / "killed", values, ranks))
    found = distance(last(folder / "killed"), last(folder / "quiet"))
    words = "bit-identical" if found == 0 else f"relative difference {found:.1e}"
    return (
        f"{kills} kills of an FSDP2 run on 2 ranks, 60 steps: {'; '.join(moments)}.\n\n"
        f"Final weights, averages and moments against the run that was never killed: {words}.\n"
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
            "Columns: objective, micro-batches a step.",
            parity(folder),
            "## Resume: relative difference of the final weights to the unbroken run of the row's layout",
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
