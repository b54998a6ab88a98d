"""Faces per second of `pfcluster predict`, side by side with the loop that is usually written; memory over many photos.

    taskset -c 1 python -m benchmarks.inference --photos wild/images

One thread. The variants take turns on the same photos in one process; a rate is faces per second of the process's CPU
time, all of its threads counted, so that other work on the machine does not change it: what one core of its own would
give. Medians over rounds; ratios are medians of the ratios in each round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pfcluster
from benchmarks.inference_variants import Run, crop_variants, photo_variants, resident_mb, write_crops
from benchmarks.result_files import write_results
from benchmarks.steps import processor
from pfcluster.inference.builtin_models import BUILTIN

COMMAND = "taskset -c 1 python -m benchmarks.inference --photos DIR"
NAME = "inference"
RESULTS = Path(__file__).resolve().parent / "results"
MEMORY_STEPS = 10
OTHERS = (
    "Not compared: EmotiEffLib 1.1.1 and py-feat 2.1.5, because their wheels hold no weights of classifiers; both"
    " download them at the first call."
)


def rates(variants: Mapping[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    """Faces, and faces per CPU second in each round, after a round to warm up."""
    values: dict[str, dict[str, Any]] = {name: {"faces": 0, "rates": []} for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            started = time.process_time()
            faces = run()
            seconds = time.process_time() - started
            values[name]["faces"] = faces
            if number:
                values[name]["rates"].append(faces / seconds)
    return values


def measure(options: argparse.Namespace, photos: Sequence[str]) -> dict[str, Any]:
    """Content of inference.json."""
    import torch

    torch.set_num_threads(1)
    model = pfcluster.load(options.model, device="cpu")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = [photos[index * len(photos) // options.n_photos] for index in range(options.n_photos)]
        detected = rates(photo_variants(model, chosen, folder), options.rounds)
        crops = write_crops(model, chosen, options.n_crops, folder / "crops")
        cropped = rates(crop_variants(options.model, model, crops, folder), options.rounds)
    return {
        "command": f"{COMMAND} --n-photos {options.n_photos} --n-crops {options.n_crops} --rounds {options.rounds}",
        "date": date.today().isoformat(),
        "machine": processor(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "timm", "facenet-pytorch")},
        "model": options.model,
        "photos": options.n_photos,
        "crops": options.n_crops,
        "rounds": options.rounds,
        "detection": detected,
        "no_detection": cropped,
        "memory": memory(options.model, photos, options.memory_photos) if options.memory_photos else {},
    }


def memory(model: str, photos: Sequence[str], number: int) -> dict[str, float]:
    """Memory in MB after each tenth of `number` photos, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        values = pool.submit(_memory, model, list(photos), number).result()
    return {str(photo): round(value, 1) for photo, value in values.items()}


def _memory(name: str, photos: Sequence[str], number: int) -> dict[int, float]:
    import torch

    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        links = [folder / f"{index:06d}{Path(photos[index % len(photos)]).suffix}" for index in range(number)]
        for index, link in enumerate(links):
            link.symlink_to(Path(photos[index % len(photos)]).resolve())
        model = pfcluster.load(name, device="cpu")
        return resident_mb(model, [str(link) for link in links], number // MEMORY_STEPS, folder)


def markdown(values: Mapping[str, Any]) -> str:
    """inference.md from the content of inference.json."""
    versions = ", ".join(f"{name} {number}" for name, number in values["versions"].items())
    lines = [
        "# Speed and memory of `predict`",
        "",
        f"{values['date']}, {values['machine']}, one thread; {versions}. `{values['model']}`; the loop's net is timm's"
        " ViT of the same sizes. Faces per second of CPU time, medians of"
        f" {values['rounds']} rounds in which the variants took turns; ratio: median of the rounds' ratios to the loop."
        " Reproduce with",
        "",
        f"    {values['command']}",
        "",
        f"From {values['photos']} photos, with detection:",
        "",
        *table(values["detection"]),
        "",
        f"From {values['crops']:,} crops, without detection:",
        "",
        *table(values["no_detection"]),
        "",
        OTHERS,
        *(memory_lines(values["memory"]) if values["memory"] else ()),
    ]
    return "\n".join(lines) + "\n"


def table(variants: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Rows of variants; the first is what the ratios refer to."""
    base = next(iter(variants.values()))["rates"]
    yield "| | faces | faces/s | ratio |"
    yield "| --- | ---: | ---: | ---: |"
    for name, values in variants.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(values["rates"], base, strict=True))
        yield f"| {name} | {values['faces']:,} | {statistics.median(values['rates']):.1f} | {ratio:.2f} |"


def memory_lines(values: Mapping[str, float]) -> Iterator[str]:
    """Memory by number of photos."""
    yield ""
    yield (
        "Memory of `predict --faces one` in MB after so many photos; growth over the second half:"
        f" {growth(values):+.1f} %."
    )
    yield ""
    yield f"| {' | '.join(f'{int(photos):,}' for photos in values)} |"
    yield f"| {' | '.join('---:' for _ in values)} |"
    yield f"| {' | '.join(f'{value:.0f}' for value in values.values())} |"


def growth(values: Mapping[str, float]) -> float:
    """Per cent from half of the photos to all."""
    measured = list(values.values())
    return 100 * (measured[-1] / measured[len(measured) // 2 - 1] - 1)


def list_photos(folder: Path) -> list[str]:
    """All JPEGs and PNGs of a folder."""
    return sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--photos", type=Path, required=True, help="folder of photos with faces")
    command.add_argument("--model", default=f"{BUILTIN}synthetic")
    command.add_argument("--n-photos", type=int, default=64)
    command.add_argument("--n-crops", type=int, default=512)
    command.add_argument("--rounds", type=int, default=4)
    command.add_argument("--memory-photos", type=int, default=10_000, help="0: leave memory out")
    command.add_argument("--output", type=Path, default=RESULTS)
    return command


def main() -> int:
    """Measure and write."""
    options = parser().parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # onnxruntime's, too
    photos = list_photos(options.photos)
    print(write_results(options.output, NAME, measure(options, photos), markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
