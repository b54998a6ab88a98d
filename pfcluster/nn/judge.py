"""A small convolutional classifier: the judge of poker faces, of another family than what it judges.

Legend: b images, c channels.
"""

from __future__ import annotations

from torch import Tensor, nn


class JudgeNet(nn.Module):
    """Four stages of two 3x3 convolutions, halving the image between them, then the mean over places and a linear head.

    Group normalisation (Wu and He 2018) keeps no statistics of batches: the same answer in training and serving, and
    on any number of processes.
    """

    def __init__(self, classes: int, *, widths: tuple[int, ...] = (24, 48, 96, 160)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in widths:
            for source in (channels, width):
                stages += [nn.Conv2d(source, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
            stages.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*stages[:-1])
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w -> logits b classes."""
        return self.head(self.features(images).mean((2, 3)))

    def shard_units(self) -> list[nn.Module]:
        """Too small to be cut."""
        return []
