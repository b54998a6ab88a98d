"""Soft shapes and face coordinates, with which the features are drawn.

Pixels are computed with sums, products, square roots and comparisons only, whose results do not depend on
vectorisation: a face is bit-identical in any chunk.

Legend: b faces, h w pixels, s sides. Coordinates as in faces.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.data.synthetic import facs
from pfcluster.data.synthetic.faces import Faces


def bump(distance: Tensor, width: Tensor | float) -> Tensor:
    """Smooth hill: 1 at distance 0, 0 from `width` on, (1 - (d/w)²)²; b h w -> b h w."""
    ratio = distance / width
    hill = (1 - ratio * ratio).clamp_(min=0)
    return hill.mul_(hill)


def spot(x: Tensor, y: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Smooth elliptic hill with the given half axes: b h w twice -> b h w."""
    across, down = x / width, y / height
    hill = (1 - across * across - down * down).clamp_(min=0)
    return hill.mul_(hill)


def step(value: Tensor, start: float, end: float) -> Tensor:
    """Smoothstep from 0 at `start` to 1 at `end`: 3t² - 2t³; b h w -> b h w."""
    t = ((value - start) / (end - start)).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def between(value: Tensor, low: Tensor | float, high: Tensor | float, edge: Tensor) -> Tensor:
    """Antialiased stripe: the share of [value - edge, value + edge] that lies in [low, high]; b h w in [0, 1]."""
    upper = torch.minimum(value + edge, torch.as_tensor(high))
    lower = torch.maximum(value - edge, torch.as_tensor(low))
    return ((upper - lower) / (2 * edge)).clamp_(0, 1)


def fill(distance: Tensor, edge: Tensor) -> Tensor:
    """1 inside (negative distance), 0 outside, with a soft edge: b h w -> b h w."""
    return step(0.5 - distance / (2 * edge), 0.0, 1.0)


def line(distance: Tensor, width: Tensor | float, edge: Tensor) -> Tensor:
    """Soft stroke around distance 0, wider and fainter if it is finer than the edge: b h w -> b h w."""
    drawn = (width * width + edge * edge) ** 0.5
    return bump(distance, drawn) * (width / drawn)


def paint(canvas: Tensor, colour: Tensor, alpha: Tensor) -> None:
    """Blend a colour into the canvas in place: canvas b 3 h w, colour b 3 1 1 or b 3 h w, alpha b h w."""
    canvas += alpha[:, None] * (colour - canvas)


@dataclass(frozen=True)
class View:
    """Faces and the coordinates of the image's pixels relative to them."""

    faces: Faces
    x: Tensor
    """b h w: horizontal coordinate before rotation, for the head's outline."""
    y: Tensor
    """b h w: vertical coordinate before rotation."""
    depth: Tensor
    """b h w in [0, 1]: depth of the head's surface, towards the camera."""
    u: Tensor
    """b h w: horizontal coordinate on the rotated face; 0 on its midline."""
    v: Tensor
    """b h w: vertical coordinate on the rotated face."""
    side: Tensor
    """b h w: side whose action units apply, smoothly from 0 (left) to 1 (right)."""
    edge: Tensor
    """b 1 1: half width of soft edges: 0.8 pixels combined with the image's blur."""

    def __getitem__(self, name: str) -> Tensor:
        """One identity or nuisance parameter: b 1 1."""
        return self.faces.parameter(name)

    def action_unit(self, number: int) -> Tensor:
        """Intensity of an action unit at each pixel: b h w."""
        left, right = self.faces.action_units[:, facs.column(number), :, None, None].unbind(1)
        return left + (right - left) * self.side

    def mean_action_unit(self, number: int) -> Tensor:
        """Intensity of an action unit, averaged over both sides: b 1 1."""
        left, right = self.faces.action_units[:, facs.column(number), :, None, None].unbind(1)
        return (left + right) * 0.5


def camera_view(faces: Faces, size: int) -> View:
    """View of faces in size × size pixels. The head is an ellipsoid, so rotation moves the features on its surface."""
    centres = (torch.arange(size, dtype=torch.float32) * 2 + 1) / size - 1
    roll = faces.parameter("roll")
    shifted_x = (centres[None, None, :] - faces.parameter("shift_x")) / faces.parameter("scale")
    shifted_y = (centres[None, :, None] - faces.parameter("shift_y")) / faces.parameter("scale")
    x = shifted_x * roll.cos() + shifted_y * roll.sin()
    y = shifted_y * roll.cos() - shifted_x * roll.sin()

    width, height = faces.parameter("face_width"), faces.parameter("face_height")
    depth = (1 - (x / width) ** 2 - (y / height) ** 2).clamp_(min=0).sqrt_()
    yaw, pitch = faces.parameter("yaw"), faces.parameter("pitch")
    u = x * yaw.cos() - depth * (0.8 * width * yaw.sin())
    v = y * pitch.cos() - depth * (0.8 * width * pitch.sin())
    pixel = 2 / size
    edge = (faces.parameter("blur").clamp(min=0) ** 2 + (0.8 * pixel) ** 2).sqrt()
    return View(faces, x, y, depth, u, v, step(u, -0.12, 0.12), edge)
