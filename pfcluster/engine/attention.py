"""Kernels of nets whose input gradient is differentiated (R1): neither fused attention nor torch.compile has a second
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class AttentionKernels:
    """The kernels of an engine's units in its current pass, which activation checkpointing repeats in the backward."""

    twice: bool = True
    """Whether the pass is differentiated twice; the engine sets it for each pass."""

    def math_only(self, tokens: Tensor) -> bool:
        """Whether a unit must not use fused kernels. On CPUs it never does, so that R1's interval changes no numbers
        but R1's.
        """
        return self.twice or not tokens.is_cuda


def attend_with(
    kernels: AttentionKernels, plain: Callable[..., Any], compiled: Callable[..., Any], *inputs: Any, **named: Any
) -> Any:
    """Call a unit's forward function, whose first input is a tensor, with the kernels that the pass allows. A compiled
    function has no second derivative: a pass that is differentiated twice calls the plain one.
    """
    forward = plain if kernels.twice else compiled
    if not kernels.math_only(inputs[0]):
        return forward(*inputs, **named)
    with sdpa_kernel(SDPBackend.MATH):
        return forward(*inputs, **named)
