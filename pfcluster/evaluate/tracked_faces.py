"""Evaluate PF-MAG on the same faces at every evaluation during training: reconstruction errors inside and outside the
expression region, and an image grid.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.splits import SyntheticSplit
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.classification import load_images, rank_batches
from pfcluster.evaluate.image_grid import pick_round_robin, write_grid
from pfcluster.evaluate.poker_faces import expression_region
from pfcluster.runs.folder import GRIDS_DIR

N_TRACKED = 200
"""Faces over which the errors are averaged."""
N_GRID_ROWS = 4
METRICS = ("rec_mse_inside", "rec_mse_outside", "poker_mse_inside", "poker_mse_outside", "copy_mse_inside")


class TrackedFaces:
    """Faces of a split, balanced over the classes, that are evaluated again and again during training."""

    def __init__(self, config: RunConfig, split: Split, world: World) -> None:
        self.config, self.split, self.world = config, split, world
        self.faces = pick_round_robin(split.labels(), len(split.classes), N_TRACKED)
        self.truth: Tensor | None = None
        """True poker faces of a synthetic split, uint8, rendered on first use."""

    @torch.inference_mode()
    def region_mse(self, model: nn.Module) -> dict[str, float]:
        """Mean squared errors (values in -1..1) inside and outside the expression region; see `METRICS`.

        `rec_*`: reconstruction against the photo; `poker_*`: poker face against the true one; `copy_mse_inside`: photo
        against the true poker face. Empty unless the split is synthetic. A collective.
        """
        if not isinstance(self.split, SyntheticSplit):
            return {}
        sums = torch.zeros(len(METRICS), 2, dtype=torch.float64)
        model.eval()
        for rows in rank_batches(len(self.faces), self.config.evaluate.batch_size, self.world):
            images, truth = self._load(rows)
            assert truth is not None
            with autocast(self.world.device, self.config.engine.precision):
                views = model(images, emotion_view=False)
            region = expression_region(images, truth)
            pairs = {"rec": (views.reconstruction, images), "copy": (images, truth)}
            if views.poker is not None:
                pairs["poker"] = (views.poker, truth)
            for name, (output, target) in pairs.items():
                squared = (output.float().clamp(-1, 1) - target).square()
                for metric, mask in ((f"{name}_mse_inside", region), (f"{name}_mse_outside", ~region)):
                    if metric in METRICS:
                        total = torch.stack([(squared * mask).sum(), 3.0 * mask.sum()])
                        sums[METRICS.index(metric)] += total.double().cpu()
        model.train()
        totals = self.world.sum(sums).tolist()
        return {name: total / count for name, (total, count) in zip(METRICS, totals, strict=True) if count}

    @torch.inference_mode()
    def draw(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write a grid of the first faces to the run folder; rank 0 only."""
        if not self.world.is_main or self.config.evaluate.grid_every == 0:
            return
        model.eval()
        rows = torch.arange(min(N_GRID_ROWS, len(self.faces)))
        images, truth = self._load(rows)
        labels = self.split.labels()[self.faces[rows]].tolist()
        with autocast(self.world.device, self.config.engine.precision):
            columns = view_columns(model, images, truth)
        path = folder / GRIDS_DIR / f"{step:08d}.jpg"
        write_grid(path, columns, [self.split.classes[label] for label in labels])
        model.train()

    def _load(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Photos and, for a synthetic split, true poker faces of some of the tracked faces: b 3 h w."""
        device = self.world.device
        images, _ = load_images(self.split, self.faces[rows], self.config.data.size, device)
        if isinstance(self.split, SyntheticSplit) and self.truth is None:
            self.truth = self.split.poker_faces(self.faces)
        return images, None if self.truth is None else transforms.to_float(self.truth[rows].to(device))


def view_columns(model: nn.Module, images: Tensor, truth: Tensor | None) -> dict[str, Tensor]:
    """Columns of an image grid: images b 3 h w, PF-ViT's views of them and the true poker faces."""
    views = model(images)
    columns = {"original": images, "reconstruction": views.reconstruction}
    if views.emotion is not None and views.poker is not None:
        columns |= {"emotion view": views.emotion, "poker face": views.poker}
    return columns if truth is None else columns | {"true poker face": truth}
