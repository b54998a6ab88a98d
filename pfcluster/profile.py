"""What a config costs before it is run: parameters, FLOPs and memory of one training step, counted on the meta device.

FLOPs are torch's own count (2 for each multiply-add, forward + backward); activations are the bytes that autograd
saves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pfcluster import models
from pfcluster.config import RunConfig
from pfcluster.dist import World
from pfcluster.engine.base import Engine, StateDict
from pfcluster.nn.mae import MAE
from pfcluster.steps.batch import Batch
from pfcluster.steps.finetune import finetune_step
from pfcluster.steps.mae import mae_step
from pfcluster.steps.pf_mag import Balance, Setting, pf_mag_step

SAMPLE = 4
"""Images of the counted step; the counts are linear in them."""


@dataclass(frozen=True)
class Profile:
    """Cost of a training step. FLOPs and saved bytes for one image, state in bytes (fp32 weights, gradients, two
    moments).
    """

    train_parameters: int
    test_parameters: int
    flops: float
    saved_bytes: float
    state_bytes: int

    def memory(self, images: int) -> float:
        """Estimated bytes for a step on so many images at a time, without the allocator's overhead."""
        return self.state_bytes + self.saved_bytes * images


class _CountingEngine(Engine):
    """Runs forward and backward where nothing is computed, and takes no step."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any, sync: bool = True, **named: Any) -> Any:
        return self.module(*inputs, **named)

    def precision(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> Tensor:
        return torch.zeros((), device="meta")

    def set_lr(self, lr: float) -> None:
        raise AssertionError("a counted step has no optimizer")

    def model_state(self) -> StateDict:
        return dict(self.module.state_dict())

    def optimizer_state(self) -> StateDict:
        return {}

    def load(self, model: StateDict, optimizer: StateDict | None) -> None:
        self.module.load_state_dict(model)


def profile(config: RunConfig, classes: int, *, recognition: nn.Module | None = None) -> Profile:
    """Count one step of a config. φ is counted where its module is given (on the meta device)."""
    with torch.device("meta"):
        modules = models.build(config, classes, load_init=False)
        batch = meta_batch(config, SAMPLE)
        flops, saved = count(lambda: _step(config, modules, batch, recognition), modules)
    counts = models.parameter_counts(config, modules)
    return Profile(
        train_parameters=counts["train"],
        test_parameters=counts["test"],
        flops=flops / SAMPLE,
        saved_bytes=saved / SAMPLE,
        state_bytes=16 * counts["train"],
    )


def meta_batch(config: RunConfig, images: int) -> Batch:
    """A batch of the config's shapes without contents, on torch's default device (call it under `meta`)."""
    return Batch(
        torch.empty(images, 3, config.data.size, config.data.size),
        torch.empty(images, dtype=torch.long),
        torch.empty(images, (config.data.size // config.model.patch) ** 2, dtype=torch.long),
    )


def count(step: Callable[[], None], modules: dict[str, nn.Module]) -> tuple[int, int]:
    """FLOPs of a step on the meta device, and the bytes that autograd saves in it besides the modules' parameters."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    own = {parameter.untyped_storage()._cdata for module in modules.values() for parameter in module.parameters()}
    saved: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other storage takes its place
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return counter.get_total_flops(), sum(size for size, _ in saved.values())


def _step(config: RunConfig, modules: dict[str, nn.Module], batch: Batch, recognition: nn.Module | None) -> None:
    model = modules["model"]
    engine = _CountingEngine(model)
    if isinstance(model, MAE):
        mae_step([batch], engine, kept=model.kept, patch=config.model.patch, norm_pixels=config.mae.norm_pixels)
    elif config.objective == "finetune":
        finetune_step([batch], engine, class_weights=None, label_smoothing=0.0)
    else:
        setting = Setting(0, None, 0.0, config.pf_mag.fake_emotions, recognition)
        balance = Balance(config.pf_mag.weights, False, 1, 1.0, 1.0, World(0, 1, torch.device("meta")))
        pf_mag_step([batch], engine, _CountingEngine(modules["critic"]), setting, balance, warm=False)
