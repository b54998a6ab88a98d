"""Picture grids: what PF-ViT makes of a face, and what MAE guesses behind its mask.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pfcluster.data.transforms import to_uint8

MARGIN = 4
HEADER = 18
SIDE = 96


def write_grid(path: Path, columns: dict[str, Tensor], row_names: list[str]) -> None:
    """A PNG or JPEG with a named column for each batch of images (b 3 h w in -1..1) and a named row for each image."""
    count = len(row_names)
    names_width = 80
    width = names_width + len(columns) * (SIDE + MARGIN)
    sheet = Image.new("RGB", (width, HEADER + count * (SIDE + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(columns.items()):
        left = names_width + column * (SIDE + MARGIN)
        pen.text((left, 3), title, fill="black")
        for row, pixels in enumerate(to_uint8(images.cpu())[:count]):
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, HEADER + row * (SIDE + MARGIN)))
    for row, name in enumerate(row_names):
        pen.text((4, HEADER + row * (SIDE + MARGIN) + SIDE // 2 - 6), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True, quality=90)


def pick(labels: Tensor, classes: int, count: int) -> Tensor:
    """Up to `count` samples that go round the classes in turn, the first of each first: long (n,). Without classes the
    first samples.
    """
    if not classes:
        return torch.arange(min(count, len(labels)))
    by_class = [(labels == index).nonzero()[:, 0].tolist() for index in range(classes)]
    turns = [members[turn] for turn in range(count) for members in by_class if turn < len(members)]
    return torch.tensor(turns[:count], dtype=torch.long)
