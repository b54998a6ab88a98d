"""Decode JPEG files with torchvision, on a GPU with nvJPEG. Legend: b images, h w pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pfcluster.data.jpeg import require_shape


def decode_jpegs_on(device: torch.device, files: Sequence[bytes | memoryview], side: int) -> Tensor:
    """Decode JPEG files of `side` x `side` pixels on a device, a GPU with nvJPEG: -> uint8 b 3 side side. A GPU's
    pixels differ from a CPU's by rounding. Raises ValueError if one is damaged or of another size.
    """
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    encoded = [_as_tensor(data) for data in files]
    try:
        images = decode(encoded, mode=ImageReadMode.RGB, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    for image in images:
        require_shape(image.shape[1:], (side, side))
    return torch.stack(images)


def decode_with_torchvision(data: bytes | memoryview) -> np.ndarray:
    """uint8 h w 3. Raises ValueError if damaged."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    try:
        return decode(_as_tensor(data), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _as_tensor(data: bytes | memoryview) -> Tensor:
    """A copy of the bytes of a file: uint8 (n,)."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
