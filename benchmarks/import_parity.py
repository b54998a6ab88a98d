"""Compare outputs of other projects' nets with ours after loading their weights; prints
benchmarks/results/import_parity.md.

    python -m benchmarks.import_parity

Random weights are saved in the layouts of the original projects and loaded through `model.init`; reported is the
largest absolute difference between their outputs and ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from tests.reference.original_mae import LAYOUTS, OriginalMae, imagenet_normalised, randomise, save_weights
from tests.reference.weight_parity import SMALL, decoder_difference, encoder_difference, random_images

BASE = {"width": 768, "depth": 12, "heads": 12, "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
TIMM_MODELS = ("vit_tiny_patch16_224", "vit_small_patch32_224", "vit_base_patch16_224")
HEADER = """# Weights of other projects

`python -m benchmarks.import_parity`, 2026-11-26, two cores of an AMD EPYC, fp32. Random weights in the layouts of the
original projects (`tests/reference/original_mae.py`; nothing is downloaded), with sizes read from the file. Reported is
the largest absolute difference of outputs over two images: tokens after the encoder's last norm, and predicted pixels
of the masked patches.

| net | file | encoder | decoder |
| --- | --- | ---: | ---: |"""


@torch.no_grad()
def differences(folder: Path) -> Iterator[tuple[str, str, float, float | None]]:
    """Net, layout of its file, and the largest absolute differences of encoder and decoder outputs."""
    sizes = {"patch 16, 64 px": (64, 16, SMALL), "patch 32, 128 px": (128, 32, SMALL), "ViT-B/16": (224, 16, BASE)}
    for name, (size, patch, widths) in sizes.items():
        reference = randomise(OriginalMae(size=size, patch=patch, **widths))
        assert isinstance(reference, OriginalMae)
        images = random_images(size)
        tokens = reference.features(imagenet_normalised(images))
        for layout in LAYOUTS:
            weights = save_weights(folder / "mae.pth", reference.state_dict(), layout)
            encoder = encoder_difference(tokens, weights, images)
            yield f"facebookresearch/mae, {name}", layout, encoder, decoder_difference(reference, weights, images)
    for name in TIMM_MODELS:
        net: Any = randomise(timm.create_model(name, pretrained=False))
        weights = save_weights(folder / "timm.pth", net.state_dict(), "bare")
        images = random_images(224)
        yield f"timm, {name}", "bare", encoder_difference(net.forward_features(images), weights, images), None


def main() -> None:
    torch.set_num_threads(1)
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for net, layout, encoder, decoder in differences(Path(folder)):
            decoder_cell = "–" if decoder is None else f"{decoder:.1e}"
            print(f"| {net} | `{layout}` | {encoder:.1e} | {decoder_cell} |", flush=True)


if __name__ == "__main__":
    main()
