"""What other runtimes compute: preprocessing and net in one graph, from stored images to outputs.

Legend: b images, s side of a stored image, z side of the network's input, k classes, d features.
"""

from __future__ import annotations

import copy
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pfcluster.data import transforms
from pfcluster.inference.model_info import ModelInfo
from pfcluster.inference.runtime_info import INPUT
from pfcluster.inference.torch_predictor import features, head
from pfcluster.models.pf_vit import PFViT

BATCH = "batch"
"""Name of the dynamic dimension."""
EXAMPLES = 2
"""Images of the example input; with one, torch.export would treat the batch size as a constant."""


class ClassifierGraph(nn.Module):
    """uint8 b s s 3 -> logits b k, features b d."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        values = features(self.net, network_input(crops, self.size))
        return head(self.net)(values), values


class PokerFaceGraph(nn.Module):
    """uint8 b s s 3 -> poker faces b 3 z z, around -1..1."""

    def __init__(self, net: PFViT, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, crops: Tensor) -> Tensor:
        images: Tensor = self.net.generator(self.net.separate(network_input(crops, self.size))[2])
        return images


def network_input(crops: Tensor, size: int) -> Tensor:
    """Stored images uint8 b s s 3 -> the network's input b 3 z z in -1..1."""
    return transforms.network_input(crops.permute(0, 3, 1, 2), size)


def graphs(info: ModelInfo, net: nn.Module) -> tuple[ClassifierGraph, PokerFaceGraph | None]:
    """The graphs of a model, each without the parts that it does not use; None for a model that generates no poker
    faces.
    """
    size, generator = info.network.size, None
    if isinstance(net, PFViT):
        if info.generates:
            generator = PokerFaceGraph(net if net.erasure else _without(net, "classifier"), size).eval()
        net = _without(net, "generator")
        net.erasure = None
    return ClassifierGraph(net, size).eval(), generator


def _without(net: PFViT, part: str) -> PFViT:
    """A copy without a part; torch.export would save its weights."""
    smaller = copy.deepcopy(net)
    delattr(smaller, part)
    return smaller


def traced(graph: nn.Module, info: ModelInfo) -> ExportedProgram:
    """A graph with dynamic batch, traced by torch.export."""
    side = info.preprocessing.crop_size
    crops = torch.zeros(EXAMPLES, side, side, 3, dtype=torch.uint8)
    batch = torch.export.Dim(BATCH, min=1)
    with torch.no_grad():
        return torch.export.export(graph, (crops,), dynamic_shapes={INPUT: {0: batch}}, strict=False)


def loaded(file: BinaryIO) -> nn.Module:
    """The graph in an open file of `torch.export.save`."""
    return torch.export.load(file).module()
