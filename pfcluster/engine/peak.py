"""Peak FLOP/s of one device, which MFU is measured against."""

from __future__ import annotations

import re

import torch

DATA_SHEETS = {
    r"\bB200\b": 2250.0,
    r"\bG?H200\b": 989.0,
    r"\bH100 PCIe\b": 756.0,
    r"\bH100 NVL\b": 835.0,
    r"\bG?H100\b": 989.0,
    r"\bA100\b": 312.0,
    r"\bL40S\b": 362.0,
    r"\bL4\b": 121.0,
    r"\bV100\b": 125.0,
    r"\bRTX 4090\b": 165.0,
}
"""Dense bf16 TFLOP/s (V100: fp16) of NVIDIA's data sheets, by a pattern of torch's name of the device."""


def peak_tflops(name: str | None, configured: float | None) -> tuple[float, str] | None:
    """Peak TFLOP/s and where the value comes from; `configured` is engine.peak_tflops, `name` that of a GPU. None if it
    is unknown.
    """
    if configured is not None:
        return configured, "engine.peak_tflops"
    for pattern, tflops in DATA_SHEETS.items():
        if name is not None and re.search(pattern, name):
            return tflops, f"data sheet of {name}, dense bf16"
    return None


def device_name(device: torch.device) -> str | None:
    """torch's name of a GPU; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
