"""Image grids: a column for each kind of view, a row for each face.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pfcluster.data.transforms import to_uint8
from pfcluster.system.atomic_files import write_via_temporary

MARGIN = 4
HEADER = 18
SIDE = 96
NAMES_WIDTH = 80


def write_grid(path: Path, columns: dict[str, Tensor], row_names: list[str]) -> None:
    """Write a PNG or JPEG with a titled column for each batch (b 3 h w in -1..1) and a named row for each image.

    Written atomically, because trackers read it during training.
    """
    count = len(row_names)
    width = NAMES_WIDTH + len(columns) * (SIDE + MARGIN)
    sheet = Image.new("RGB", (width, HEADER + count * (SIDE + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(columns.items()):
        left = NAMES_WIDTH + column * (SIDE + MARGIN)
        draw.text((left, 3), title, fill="black")
        for row, pixels in enumerate(to_uint8(images.cpu())[:count]):
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, HEADER + row * (SIDE + MARGIN)))
    for row, name in enumerate(row_names):
        draw.text((4, HEADER + row * (SIDE + MARGIN) + SIDE // 2 - 6), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    write_via_temporary(path, lambda file: sheet.save(file, format=kind, optimize=True, quality=90))


def pick_round_robin(labels: Tensor, classes: int, count: int) -> Tensor:
    """Indices of up to `count` samples, taken from each class in turn in the split's order: long (n,). With 0 classes
    (an unlabelled split) the first samples.
    """
    if not classes:
        return torch.arange(min(count, len(labels)))
    by_class = [(labels == index).nonzero()[:, 0].tolist() for index in range(classes)]
    turns = [members[turn] for turn in range(count) for members in by_class if turn < len(members)]
    return torch.tensor(turns[:count], dtype=torch.long)
