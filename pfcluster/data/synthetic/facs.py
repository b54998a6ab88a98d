"""Facial action units and the recipes of the eight expressions.

Sources: the units and their appearance, Ekman & Friesen, Facial Action Coding System (1978; Ekman, Friesen & Hager
2002); which units make which emotion, the same authors' EMFACS (1983), in the form common in the FER literature;
contempt as 12 + 14 of one side only, Ekman & Friesen, "A new pan-cultural facial expression of emotion" (1986).

Legend: b faces, a action units (15, in the order of ACTION_UNITS), s sides (0 the picture's left, 1 its right).
Intensities lie in [0, 1]: 0 is FACS's "absent", 1 its maximum, E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.data.labels import CANONICAL

ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 12, 14, 15, 17, 20, 23, 25, 26)
NAMES = (
    "inner brow raiser",
    "outer brow raiser",
    "brow lowerer",
    "upper lid raiser",
    "cheek raiser",
    "lid tightener",
    "nose wrinkler",
    "lip corner puller",
    "dimpler",
    "lip corner depressor",
    "chin raiser",
    "lip stretcher",
    "lip tightener",
    "lips part",
    "jaw drop",
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The units of one expression."""

    core: tuple[int, ...] = ()
    """Units that every showing of it has."""
    secondary: tuple[int, ...] = ()
    """Units that a showing may lack."""
    unilateral: bool = False
    """Whether it is shown on one side of the face only."""

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
"""How often a secondary unit is shown."""
WEAKEST = 0.3
"""Strength of the weakest showing; the strongest has 1. The weak ones are what makes the task hard."""
SPREAD = (0.7, 1.2)
"""Range of one unit's intensity around its showing's strength."""
NOISE_SHARE, NOISE = 0.2, 0.18
"""How often a unit twitches by itself, and by how much at most."""
QUIET_SHARE = 0.3
"""Share of faces without any such twitching."""
UNIFORMS = 3 + 5 * len(ACTION_UNITS)
"""Random numbers that one face's units consume."""


def recipe(emotion: str) -> Recipe:
    """The recipe of one canonical emotion. Raises ValueError for another name."""
    for name, found in RECIPES:
        if name == emotion:
            return found
    raise ValueError(f"emotion must be one of {', '.join(CANONICAL)}, got {emotion!r}")


def column(action_unit: int) -> int:
    """Where a unit stands among the columns `a`. Raises ValueError for a unit that faces here do not have."""
    if action_unit not in ACTION_UNITS:
        raise ValueError(f"action_unit must be one of {ACTION_UNITS}, got {action_unit!r}")
    return ACTION_UNITS.index(action_unit)


def intensities(emotions: Tensor, uniforms: Tensor, min_intensity: float = WEAKEST) -> Tensor:
    """Random showings of the given expressions: b (indices into CANONICAL), b u in [0, 1) -> b a s.

    u = UNIFORMS. Each face has one strength, each of its units an own intensity around it; secondary units are dropped
    at random, units twitch at random, and the two sides differ by up to a tenth (one side is still where unilateral).
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
