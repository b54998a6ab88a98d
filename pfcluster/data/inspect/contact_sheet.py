"""Contact sheet of a split: one row of faces per class, with the class name and its number of samples."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from pfcluster.data.shards import ShardSplit

CELL = 96
"""Side of a face on the sheet, in pixels."""
GAP = 4
NAME_WIDTH = 150


def contact_sheet(split: ShardSplit, per_class: int) -> Image.Image:
    """Draw up to `per_class` faces of each class, spread evenly over the split; one row of data without labels."""
    labels = split.labels()
    samples_of = {name: (labels == index).nonzero().flatten().tolist() for index, name in enumerate(split.classes)}
    samples_of = samples_of or {"unlabelled": list(range(len(split)))}
    size = (NAME_WIDTH + per_class * (CELL + GAP) + GAP, len(samples_of) * (CELL + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    for row, (name, samples) in enumerate(samples_of.items()):
        top = GAP + row * (CELL + GAP)
        draw.text((GAP * 2, top + CELL // 2), f"{name}\n{len(samples)}", fill="black", font=font, anchor="lm")
        shown = samples
        if len(samples) > per_class:
            shown = [samples[column * len(samples) // per_class] for column in range(per_class)]
        for column, index in enumerate(shown):
            face = Image.fromarray(split.image(index)).resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(face, (NAME_WIDTH + column * (CELL + GAP), top))
    return sheet
