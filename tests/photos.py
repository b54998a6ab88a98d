"""Small uniformly coloured photos for tests of builds, and helpers to inspect the result."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pfcluster.data.build.options import BuildOptions
from pfcluster.data.manifest import MANIFEST

ROOT = Path(__file__).resolve().parents[1]
SIZE = 24
COLOURS = {"happy": (220, 40, 40), "sad": (40, 60, 220), "neutral": (128, 128, 128), "fear": (40, 200, 60)}
CANONICAL = {"happy": "happiness", "sad": "sadness", "neutral": "neutral", "fear": "fear"}


def picture(label: str, number: int, side: int = 32) -> Image.Image:
    """A square of the label's colour, with a corner whose colour encodes the number."""
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = COLOURS[label]
    pixels[: side // 4, : side // 4] = (number % 256, number // 256, 77)
    return Image.fromarray(pixels)


def make_folder(root: Path, per_class: int = 12, labels: tuple[str, ...] = ("happy", "sad", "neutral")) -> Path:
    for index, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            picture(label, 1000 * index + number).save(root / label / f"{number:03d}.png")
    return root


def make_csv(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Write rows of image, label, identity, and create missing photos whose name ends in .png."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    with open(root / "legend.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("image", "emotion", "identity"), *rows])
    for number, (name, label, _) in enumerate(rows):
        if name.endswith(".png") and label in COLOURS and not (root / "images" / name).exists():
            picture(label, number).save(root / "images" / name)
    return root / "legend.csv"


def options(source: Path, output: Path, **changes: object) -> BuildOptions:
    values = {"size": SIZE, "align": "none", "workers": 1, "samples_per_shard": 8, **changes}
    return BuildOptions(input=source, output=output, **values)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_index(folder: Path, shard: str, data: bytes) -> None:
    """Replace the index of a shard, and its checksum in the manifest."""
    (folder / f"{shard}.index.json").write_bytes(data)
    values = json.loads((folder / MANIFEST).read_bytes())
    for split in values["splits"].values():
        for file in split["shards"]:
            if file["file"] == f"{shard}.tar":
                file["index_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(values))


def left_out(folder: Path) -> dict[str, str]:
    """Reason by `input:source:label`."""
    with open(folder / "left_out.csv", newline="") as file:
        return {f"{row['input']}:{row['source']}:{row['label']}": row["reason"] for row in csv.DictReader(file)}


def run(script: str, *arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "shards" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **kwargs)  # type: ignore[call-overload]
