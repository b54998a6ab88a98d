"""Facial action units (FACS) and the recipes of the eight expressions.

Sources: units and their appearance, Ekman & Friesen, Facial Action Coding System (1978; Ekman, Friesen & Hager 2002);
units of each emotion, the same authors' EMFACS (1983), in the form common in the FER literature; contempt as unilateral
12 + 14, Ekman & Friesen, "A new pan-cultural facial expression of emotion" (1986).

Legend: b faces, a action units (15, in the order of ACTION_UNITS), s sides (0 left in the image, 1 right), u uniform
numbers. Intensities lie in [0, 1]: 0 is absent in FACS, 1 its maximum, E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.data.labels import CANONICAL

ACTION_UNITS = (
    1,  # inner brow raiser
    2,  # outer brow raiser
    4,  # brow lowerer
    5,  # upper lid raiser
    6,  # cheek raiser
    7,  # lid tightener
    9,  # nose wrinkler
    12,  # lip corner puller
    14,  # dimpler
    15,  # lip corner depressor
    17,  # chin raiser
    20,  # lip stretcher
    23,  # lip tightener
    25,  # lips part
    26,  # jaw drop
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Action units of one expression."""

    core: tuple[int, ...] = ()
    """Units that are always active."""
    secondary: tuple[int, ...] = ()
    """Units that are active with probability SECONDARY_SHARE."""
    unilateral: bool = False
    """Whether the units are active on one side of the face only."""

    @property
    def units(self) -> tuple[int, ...]:
        return self.core + self.secondary


RECIPES = (
    ("neutral", Recipe()),
    ("happiness", Recipe(core=(12,), secondary=(6, 25))),
    ("sadness", Recipe(core=(1, 15), secondary=(4, 17))),
    ("surprise", Recipe(core=(1, 2), secondary=(5, 26))),
    ("fear", Recipe(core=(1, 4, 20), secondary=(2, 5, 7, 26))),
    ("disgust", Recipe(core=(9,), secondary=(15, 17))),
    ("anger", Recipe(core=(4, 23), secondary=(5, 7))),
    ("contempt", Recipe(core=(12, 14), unilateral=True)),
)

SECONDARY_SHARE = 0.8
"""Probability that a secondary unit is active."""
MIN_INTENSITY = 0.3
"""Default intensity of the weakest expressions; the strongest have 1. The weak ones make the task hard."""
SPREAD = (0.7, 1.2)
"""Range of a unit's intensity relative to that of the expression."""
NOISE_SHARE, NOISE = 0.2, 0.18
"""Probability of a unit's random activation, and its maximum intensity."""
QUIET_SHARE = 0.3
"""Share of faces without random activations."""
UNIFORMS = 3 + 5 * len(ACTION_UNITS)
"""Random numbers per face."""


def recipe(emotion: str) -> Recipe:
    """The recipe of one canonical emotion. Raises ValueError for another name."""
    for name, units in RECIPES:
        if name == emotion:
            return units
    raise ValueError(f"emotion must be one of {', '.join(CANONICAL)}, got {emotion!r}")


def column(action_unit: int) -> int:
    """Index of an action unit in ACTION_UNITS. Raises ValueError if it is not among them."""
    if action_unit not in ACTION_UNITS:
        raise ValueError(f"action_unit must be one of {ACTION_UNITS}, got {action_unit!r}")
    return ACTION_UNITS.index(action_unit)


def intensities(emotions: Tensor, uniforms: Tensor, min_intensity: float = MIN_INTENSITY) -> Tensor:
    """Random action units of the given expressions: b (indices into CANONICAL), b u in [0, 1) -> b a s; u = UNIFORMS.

    Each face has one intensity, around which the intensities of its units vary. Secondary units are dropped at random,
    and units are activated at random. The two sides differ by up to a tenth; in unilateral expressions one side has
    random activations only.
    """
    strength, side, quiet = uniforms[:, :3].T
    dropped, spread, twitch, twitch_size, tilt = uniforms[:, 3:].unflatten(1, (5, len(ACTION_UNITS))).unbind(1)
    recipes = [recipe(name) for name in CANONICAL]
    core = torch.tensor([[unit in one.core for unit in ACTION_UNITS] for one in recipes])[emotions]
    secondary = torch.tensor([[unit in one.secondary for unit in ACTION_UNITS] for one in recipes])[emotions]
    unilateral = torch.tensor([one.unilateral for one in recipes])[emotions]

    shown = core | (secondary & (dropped < SECONDARY_SHARE))
    strength = min_intensity + (1 - min_intensity) * strength
    amount = shown * strength[:, None] * (SPREAD[0] + (SPREAD[1] - SPREAD[0]) * spread)
    noise = (twitch < NOISE_SHARE) * (quiet >= QUIET_SHARE)[:, None] * NOISE * twitch_size

    lean = 0.2 * (tilt - 0.5)
    both_sides = torch.stack([amount * (1 + lean), amount * (1 - lean)], 2)
    still = torch.stack([side < 0.5, side >= 0.5], 1) & unilateral[:, None]
    return (both_sides * ~still[:, None] + noise[:, :, None]).clamp(0, 1).float()
