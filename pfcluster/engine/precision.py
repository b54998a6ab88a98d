"""Mixed precision: the one place that decides under which autocast a net computes."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast for `engine.precision` bf16 and bf16_params; a context that changes nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision != "fp32")
