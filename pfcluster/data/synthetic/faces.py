"""Parameters of a synthetic face: identity, nuisance (pose, light, background, ...) and action units, all independent.

Legend: b faces, i identity parameters, n nuisance parameters, a action units, s sides (0 left in the image, 1 right).
Lengths are in units of half the image's side: an unmoved face lies in x, y in [-1, 1], x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IDENTITY = (
    ("face_width", 0.64, 0.76),
    ("face_height", 0.88, 0.97),
    ("jaw_taper", 0.12, 0.42),
    ("chin_squareness", 0.0, 1.0),
    ("skin_tone", 0.0, 1.0),
    ("skin_redness", -0.03, 0.05),
    ("age", -0.4, 1.0),  # below zero: no wrinkles
    ("hair_amount", -0.25, 1.0),  # below zero: bald
    ("hair_length", -0.35, 1.3),  # y of its lower end
    ("hairline", -0.72, -0.5),
    ("hairline_slope", -0.25, 0.25),
    ("hair_curl", 0.0, 1.0),
    ("hair_colour", 0.0, 1.0),
    ("eye_distance", 0.275, 0.335),
    ("eye_height", -0.14, -0.06),
    ("eye_width", 0.15, 0.19),
    ("eye_opening", 0.058, 0.088),
    ("eye_tilt", -0.015, 0.03),
    ("eye_colour", 0.0, 1.0),
    ("brow_distance", 0.175, 0.235),
    ("brow_thickness", 0.028, 0.055),
    ("brow_arch", 0.01, 0.055),
    ("brow_slope", -0.03, 0.035),  # tilt at rest
    ("brow_darkness", 0.35, 0.9),
    ("nose_length", 0.22, 0.31),
    ("nose_width", 0.085, 0.13),
    ("nose_bridge", 0.3, 1.0),
    ("mouth_height", 0.47, 0.54),
    ("mouth_width", 0.25, 0.33),
    ("lip_thickness", 0.04, 0.085),
    ("lip_redness", 0.1, 0.8),
    ("corner_rest", -0.02, 0.03),  # height of the lip corners at rest
    ("beard", -1.5, 1.0),  # below zero: none
    ("glasses", -3.0, 1.0),  # below zero: none
)

NUISANCE = (
    ("yaw", -0.4, 0.4),  # radians
    ("pitch", -0.14, 0.14),
    ("roll", -0.2, 0.2),
    ("scale", 0.95, 1.15),
    ("shift_x", -0.08, 0.08),
    ("shift_y", -0.07, 0.07),
    ("light_x", -0.9, 0.9),
    ("light_y", -0.8, 0.3),
    ("ambient", 0.25, 0.75),
    ("exposure", 0.75, 1.15),
    ("warmth", -0.1, 0.1),
    ("background_red", 0.05, 0.95),
    ("background_green", 0.05, 0.95),
    ("background_blue", 0.05, 0.95),
    ("background_contrast", -0.35, 0.35),
    ("background_angle", -1.0, 1.0),
    ("background_x", -1.0, 1.0),
    ("clothes_red", 0.05, 0.9),
    ("clothes_green", 0.05, 0.9),
    ("clothes_blue", 0.05, 0.9),
    ("gaze_x", -0.03, 0.03),
    ("gaze_y", -0.01, 0.012),
    ("lids", 0.85, 1.1),  # opening of the eyes
    ("blur", -0.03, 0.04),  # radius; below zero: sharp
    ("noise", -0.02, 0.035),  # below zero: none
    ("noise_key", 0.0, 1.0),
    ("occluder", -4.0, 1.0),  # below zero: none
    ("occluder_x", -0.7, 0.7),
    ("occluder_y", -0.4, 0.9),
    ("occluder_angle", -1.0, 1.0),
    ("occluder_width", 0.1, 0.22),
    ("occluder_length", 0.25, 0.6),
    ("occluder_skin", 0.0, 1.0),  # above 0.5: skin colour (a hand), else the clothes' colour
)

ABSENT_BELOW_ZERO = ("blur", "noise", "occluder")

IDENTITY_NAMES = tuple(name for name, _, _ in IDENTITY)
NUISANCE_NAMES = tuple(name for name, _, _ in NUISANCE)


@dataclass(frozen=True)
class Faces:
    """Parameters of b faces."""

    identity: Tensor
    """b i float32, columns as in IDENTITY."""
    nuisance: Tensor
    """b n float32, columns as in NUISANCE."""
    action_units: Tensor
    """b a s float32 in [0, 1], in the order of facs.ACTION_UNITS."""

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, rows: slice | Tensor) -> Faces:
        """A subset of the faces."""
        return Faces(self.identity[rows], self.nuisance[rows], self.action_units[rows])

    def neutral_twin(self) -> Faces:
        """The ground-truth poker faces: all action units 0, all else unchanged."""
        return Faces(self.identity, self.nuisance, torch.zeros_like(self.action_units))

    def parameter(self, name: str) -> Tensor:
        """One identity or nuisance parameter: b 1 1, which broadcasts with b h w. Raises ValueError for other names."""
        if name in IDENTITY_NAMES:
            return self.identity[:, IDENTITY_NAMES.index(name), None, None]
        if name in NUISANCE_NAMES:
            return self.nuisance[:, NUISANCE_NAMES.index(name), None, None]
        raise ValueError(f"name must be a parameter of IDENTITY or NUISANCE, got {name!r}")

    def with_parameter(self, name: str, value: float) -> Faces:
        """The same faces with one identity or nuisance parameter set to a value."""
        identity, nuisance = self.identity.clone(), self.nuisance.clone()
        target = Faces(identity, nuisance, self.action_units)
        target.parameter(name).fill_(value)
        return target


def concatenate(parts: Sequence[Faces]) -> Faces:
    """Concatenate faces, in order."""
    return Faces(
        torch.cat([part.identity for part in parts]),
        torch.cat([part.nuisance for part in parts]),
        torch.cat([part.action_units for part in parts]),
    )


def shrink_nuisance(nuisance: Tensor, share: float) -> Tensor:
    """Shrink the range of nuisance parameters to the fraction `share`: b n -> b n; 1 changes nothing.

    Most shrink around the middle of their range. Those of ABSENT_BELOW_ZERO become rarer and weaker, and are absent at
    0.
    """
    if share == 1:
        return nuisance
    low, high = (torch.tensor([row[side] for row in NUISANCE]) for side in (1, 2))
    can_be_absent = torch.tensor([name in ABSENT_BELOW_ZERO for name in NUISANCE_NAMES])
    middle = (low + high) / 2
    return torch.where(can_be_absent, nuisance - (1 - share) * high, middle + share * (nuisance - middle))


def from_uniforms(table: Sequence[tuple[str, float, float]], uniforms: Tensor) -> Tensor:
    """Map uniform numbers to the parameters' ranges: b p in [0, 1) -> float32 b p."""
    low = torch.tensor([low for _, low, _ in table], dtype=torch.float64)
    high = torch.tensor([high for _, _, high in table], dtype=torch.float64)
    return (low + (high - low) * uniforms).float()
