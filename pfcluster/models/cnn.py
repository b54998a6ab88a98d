"""A small convolutional classifier: the judge of poker faces, of another family than what it judges.

Legend: b images, c channels.
"""

from __future__ import annotations

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four 3x3 convolutions, halving the image between them, then the mean over places and a linear head.

    Batch normalisation: with group normalisation the same net learned half as fast on the synthetic faces. Under
    several processes each normalises its own part of the batch, and rank 0's running statistics are kept, as usual in
    torch.
    """

    def __init__(self, classes: int, *, widths: tuple[int, ...] = (24, 48, 96, 160)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in widths:
            stages += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
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
