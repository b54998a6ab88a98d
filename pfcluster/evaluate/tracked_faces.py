"""What is looked at at every evaluation of PF-MAG, on the same faces each time: how well faces are painted where the
expression is and elsewhere, and a picture grid.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.dataset import SyntheticSplit
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World
from pfcluster.evaluate.classification import chunks, load_images
from pfcluster.evaluate.image_grid import pick, write_grid
from pfcluster.evaluate.poker_faces import expression_region

WATCHED = 200
"""Faces whose errors are taken."""
DRAWN = 4
"""Faces in a grid."""
GRIDS = Path("pictures") / "steps"
"""Where a run keeps its grids, `STEP.jpg`."""


class TrackedFaces:
    """The same faces of a split, all classes alike, seen through a model as it is trained."""

    def __init__(self, config: RunConfig, split: Split, world: World) -> None:
        self.config, self.split, self.world = config, split, world
        self.faces = pick(split.labels(), len(split.classes), WATCHED)
        self.truth: Tensor | None = None
        """The true poker faces where they are known, rendered when they are first asked for."""

    @torch.inference_mode()
    def region_errors(self, model: nn.Module) -> dict[str, float]:
        """Mean squared errors, values in -1..1, within the expression's region and outside it: `rec_*` of the
        reconstruction against the photo, `poker_*` of the poker face against the true one, `copy_mse_inside` of the
        photo against the true poker face. Nothing where the truth is not known. A collective.
        """
        if not isinstance(self.split, SyntheticSplit):
            return {}
        names = ("rec_mse_inside", "rec_mse_outside", "poker_mse_inside", "poker_mse_outside", "copy_mse_inside")
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        model.eval()
        for places in chunks(len(self.faces), self.config.evaluate.batch_size, self.world):
            images, truth = self._load(places)
            assert truth is not None
            with self._autocast():
                views = model(images, emotion_view=False)
            region = expression_region(images, truth)
            compared = {"rec": (views.reconstruction, images), "copy": (images, truth)}
            if views.poker is not None:
                compared["poker"] = (views.poker, truth)
            for name, (shown, wanted) in compared.items():
                squared = (shown.float().clamp(-1, 1) - wanted).square()
                for side, mask in (("inside", region), ("outside", ~region)):
                    if f"{name}_{side}" in names:
                        found = torch.stack([(squared * mask).sum(), 3.0 * mask.sum()])
                        sums[names.index(f"{name}_{side}")] += found.double().cpu()
        model.train()
        totals = self.world.sum(sums).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}

    @torch.inference_mode()
    def draw(self, model: nn.Module, folder: Path, step: int) -> None:
        """A grid of the first faces in the run's folder; rank 0 alone draws."""
        if not self.world.is_main or self.config.evaluate.grid_every == 0:
            return
        model.eval()
        places = torch.arange(min(DRAWN, len(self.faces)))
        images, truth = self._load(places)
        labels = self.split.labels()[self.faces[places]]
        with self._autocast():
            columns = view_columns(model, images, truth)
        write_grid(
            folder / GRIDS / f"{step:08d}.jpg", columns, [self.split.classes[label] for label in labels.tolist()]
        )
        model.train()

    def _load(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Photos and, where they are known, true poker faces at some places among the faces: b 3 h w."""
        device = self.world.device
        images, _ = load_images(self.split, self.faces[places], self.config.data.size, device)
        if isinstance(self.split, SyntheticSplit) and self.truth is None:
            self.truth = self.split.poker_faces(self.faces)
        return images, None if self.truth is None else transforms.to_float(self.truth[places].to(device))

    def _autocast(self) -> torch.autocast:
        half = self.config.engine.precision != "fp32"
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=half)


def view_columns(model: nn.Module, images: Tensor, truth: Tensor | None) -> dict[str, Tensor]:
    """Named columns of a picture grid: what PF-ViT makes of images b 3 h w, and the true poker faces."""
    views = model(images)
    columns = {"original": images, "reconstruction": views.reconstruction}
    if views.emotion is not None and views.poker is not None:
        columns |= {"emotion view": views.emotion, "poker face": views.poker}
    return columns if truth is None else columns | {"true poker face": truth}
