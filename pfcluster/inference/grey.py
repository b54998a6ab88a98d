"""Grey images: a network that was trained on grey photos only sees every photo in grey. No torch.

Legend: h rows, w columns.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

TOLERANCE = 2
"""Largest difference between the channels of a grey pixel, in 0..255: JPEG rounds."""


def is_grey(images: np.ndarray) -> bool:
    """Whether every pixel has three equal channels, up to `TOLERANCE`: uint8 ... 3."""
    return not images.size or int((images.max(-1) - images.min(-1)).max()) <= TOLERANCE


def to_grey(image: np.ndarray) -> np.ndarray:
    """Luma (ITU-R BT.601, as pillow's mode "L") in all three channels: uint8 h w 3 -> uint8 h w 3."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
