"""A small convolutional classifier, used as judge of poker faces: of another architecture than the nets it evaluates.

Legend: b images, c channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Stages of 3x3 convolutions with max pooling between them, global average pooling and a linear head.

    Batch normalisation, because with group normalisation the net learned half as fast on the synthetic faces. Each
    process normalises its slice of the batch, and rank 0's running statistics are saved, as in DistributedDataParallel.
    """

    def __init__(self, classes: int, *, widths: tuple[int, ...] = (24, 48, 96, 160), convolutions: int = 1) -> None:
        """`convolutions` of each stage, all with the stage's width."""
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for width in widths:
            for _ in range(convolutions):
                stages += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            stages.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*stages[:-1])
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w -> logits b classes."""
        if images.is_cuda:  # for cuDNN's tensor-core kernels; on CPUs it would change the results' rounding
            images = images.contiguous(memory_format=torch.channels_last)
        return self.head(self.features(images).mean((2, 3)))

    def shard_units(self) -> list[nn.Module]:
        """None: the net is too small to shard."""
        return []
