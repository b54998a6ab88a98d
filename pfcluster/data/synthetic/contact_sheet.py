"""Contact sheet of synthetic faces, for the documentation.

python -m pfcluster.data.synthetic.contact_sheet docs/assets/synthetic_faces.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pfcluster.data.labels import CANONICAL
from pfcluster.data.synthetic import facs
from pfcluster.data.synthetic.dataset import SyntheticFaces, identity_parameters, uniforms
from pfcluster.data.synthetic.faces import NUISANCE, NUISANCE_NAMES, Faces, concatenate, from_uniforms
from pfcluster.data.synthetic.renderer import render

HEADING, GAP = 18, 10
"""Heights in pixels."""


def studio_portraits(faces: Faces) -> Faces:
    """The same identities and expressions in frontal pose and even light, without occlusion, blur or noise."""
    neutral = {"ambient": 0.6, "exposure": 1.0, "light_x": -0.3, "light_y": -0.3, "scale": 1.0, "lids": 1.0}
    absent = {"blur": -1.0, "noise": -1.0, "occluder": -1.0}
    unchanged = ("clothes_red", "clothes_green", "clothes_blue")
    for name in NUISANCE_NAMES:
        if name not in unchanged:
            default = 0.72 if name.startswith("background_") and name.split("_")[1] in ("red", "green", "blue") else 0.0
            faces = faces.with_parameter(name, {**neutral, **absent}.get(name, default))
    return faces


def expression_rows(identities: int) -> Faces:
    """Studio portraits of some identities: each shows all canonical expressions clearly, then its neutral twin."""
    emotions = torch.arange(len(CANONICAL)).repeat(identities)
    draws = uniforms("sheet", 3, np.arange(len(emotions), dtype=np.uint64), facs.UNIFORMS)
    draws[:, 0] = 0.85
    draws[:, 2] = 0.0
    draws[:, 3 : 3 + len(facs.ACTION_UNITS)] = 0.0
    numbers = torch.arange(identities).repeat_interleave(len(CANONICAL))
    nuisance = from_uniforms(NUISANCE, uniforms("sheet", 5, numbers.numpy().astype(np.uint64), len(NUISANCE)))
    portraits = studio_portraits(Faces(identity_parameters(numbers + 21), nuisance, facs.intensities(emotions, draws)))
    rows = []
    for number in range(identities):
        row = portraits[slice(number * len(CANONICAL), (number + 1) * len(CANONICAL))]
        rows += [row, row[1:2].neutral_twin()]
    return concatenate(rows)


def contact_sheet(path: str | Path, size: int = 96, identities: int = 6, sample_rows: int = 4) -> None:
    """Save an image with `identities` rows of studio portraits and `sample_rows` rows of samples of the dataset.

    size: pixels of one face, 32..224.
    """
    columns = (*CANONICAL, "neutral twin")
    samples = SyntheticFaces(sample_rows * len(columns), size=size, seed=2)
    sheet = Image.new("RGB", (len(columns) * size, 2 * HEADING + GAP + (identities + sample_rows) * size), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((column * size + size / 2, HEADING / 2), name, fill="black", anchor="mm")
    paste_grid(sheet, render(expression_rows(identities), size), HEADING, len(columns))
    top = HEADING + identities * size + GAP
    draw.text((4, top + 2), "as in the dataset:", fill="black")
    paste_grid(sheet, samples.images(), top + HEADING, len(columns))
    for number, label in enumerate(samples.true_labels()):
        row, column = divmod(number, len(columns))
        place = (column * size + 3, top + HEADING + (row + 1) * size - 13)
        draw.text(place, samples.classes[label], fill="white")
    sheet.save(path, quality=88)


def paste_grid(sheet: Image.Image, images: Tensor, top: int, columns: int) -> None:
    """Paste images, uint8 n 3 h w, row by row from `top` down."""
    size = images.shape[-1]
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), (column * size, top + row * size))


if __name__ == "__main__":
    contact_sheet(sys.argv[1] if len(sys.argv) > 1 else "docs/assets/synthetic_faces.jpg")
