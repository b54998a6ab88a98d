"""Counter-based random numbers: a sample's draws are a function of its number in the global batch.

Philox (Salmon et al. 2011) computes each block of its stream from the block's number, without those before it. A rank
therefore draws for its own samples only, and gets the values that a single process would draw, at a cost that falls
with the number of ranks. NumPy's implementation: torch's CPU generator cannot start in the middle of a stream.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pfcluster.distributed.process_group import derive_seed

VALUES_PER_BLOCK = 8
"""A block has 256 bits; a value takes 32 of them."""


def uniform(samples: slice, values: int, *stream: int | str) -> Tensor:
    """Uniform in [0, 1), in steps of 2^-24: fp32 (samples, values), a row for each sample of the global batch in
    `samples` (start and stop given). `stream` names the numbers: seed, purpose, step.
    """
    blocks = -(-values // VALUES_PER_BLOCK)
    count = samples.stop - samples.start
    bits = np.random.Philox(key=derive_seed(*stream), counter=samples.start * blocks)
    raw = np.asarray(bits.random_raw(count * blocks * 4)).view(np.uint32)
    drawn = raw.reshape(count, blocks * VALUES_PER_BLOCK)[:, :values]
    return torch.from_numpy((drawn >> np.uint32(8)).astype(np.float32) * np.float32(2**-24))
