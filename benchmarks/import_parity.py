"""Do others' weights compute the same in our nets? `python -m benchmarks.import_parity` prints
benchmarks/results/import_parity.md.

Nets of the originals' layouts with random weights are saved as they save them and loaded through `model.init`; shown is
the largest absolute difference between their outputs and ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from benchmarks.originals import OriginalMae, normalised, stirred, write
from pfcluster.config import RunConfig, presets
from pfcluster.config.io import with_values
from pfcluster.models import factory
from pfcluster.models.mae import MAE
from pfcluster.models.pretrained import external_sizes
from pfcluster.models.vit import Classifier

SMALL = {"width": 128, "depth": 3, "heads": 2, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 2}
BASE = {"width": 768, "depth": 12, "heads": 12, "decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}


LAYOUTS = ("model", "model_state_dict", "parallel", "training")
"""How facebookresearch/mae and those who build on it wrap their weights (`originals.write`)."""


def started(source: Path, objective: str) -> torch.nn.Module:
    """Our net of the sizes that a file has, from its weights. `objective`: finetune or mae."""
    role = "scratch" if objective == "finetune" else "mae"
    config: RunConfig = presets.recipe("small")[role]
    config = with_values(config, external_sizes(str(source)) | {"model.init": str(source)})
    return factory.build(config, 8)["model"].eval()


@torch.no_grad()
def of_features(theirs: Tensor, source: Path, images: Tensor) -> float:
    """Largest difference of the encoder's tokens from theirs, b (1 + n) d."""
    ours = started(source, "finetune")
    assert isinstance(ours, Classifier)
    return float((ours.encoder(images) - theirs).abs().max())


@torch.no_grad()
def of_prediction(theirs: OriginalMae, source: Path, images: Tensor) -> float:
    """Largest difference of what is predicted of hidden patches, under one mask."""
    ours = started(source, "mae")
    assert isinstance(ours, MAE)
    patch = ours.encoder.patch
    order = torch.rand(len(images), len(ours.encoder.positions), generator=torch.Generator().manual_seed(2)).argsort(1)
    pixels = theirs(normalised(images), order, ours.kept).unflatten(2, (patch, patch, 3)).permute(0, 1, 4, 2, 3)
    hidden = order[:, ours.kept :, None].expand(-1, -1, 3 * patch**2)
    return float((ours(images, order) - pixels.flatten(2).gather(1, hidden)).abs().max())


def noise(size: int) -> Tensor:
    """Two images in -1..1."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def differences(folder: Path) -> Iterator[tuple[str, str, float, float | None]]:
    """Net, layout of its file, and the largest absolute differences of encoder and decoder."""
    sizes = {"patch 16, 64 px": (64, 16, SMALL), "patch 32, 128 px": (128, 32, SMALL), "ViT-B/16": (224, 16, BASE)}
    for name, (size, patch, rest) in sizes.items():
        theirs = stirred(OriginalMae(size=size, patch=patch, **rest))
        assert isinstance(theirs, OriginalMae)
        images = noise(size)
        features = theirs.features(normalised(images))
        for layout in LAYOUTS:
            source = write(folder / "mae.pth", theirs.state_dict(), layout)
            encoder = of_features(features, source, images)
            yield f"facebookresearch/mae, {name}", layout, encoder, of_prediction(theirs, source, images)
    for name in ("vit_tiny_patch16_224", "vit_small_patch32_224", "vit_base_patch16_224"):
        net: Any = stirred(timm.create_model(name, pretrained=False))
        source = write(folder / "timm.pth", net.state_dict(), "bare")
        yield f"timm, {name}", "bare", of_features(net.forward_features(noise(224)), source, noise(224)), None


HEAD = """# Others' weights in our nets

`python -m benchmarks.import_parity`, 2026-11-26, two cores of an AMD EPYC, fp32. Random weights in the layouts of the
originals (`benchmarks/originals.py`; no downloaded file), their sizes read off the file; the largest absolute
difference of outputs over two images: tokens after the encoder's last norm, predicted pixels of the hidden patches.

| net | file | encoder | decoder |
| --- | --- | ---: | ---: |"""


def main() -> None:
    torch.set_num_threads(1)
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for net, layout, encoder, decoder in differences(Path(folder)):
            second = "–" if decoder is None else f"{decoder:.1e}"
            print(f"| {net} | `{layout}` | {encoder:.1e} | {second} |", flush=True)


if __name__ == "__main__":
    main()
