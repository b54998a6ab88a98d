"""Parameters, FLOPs and saved activations of a training step, counted on the meta device without computing anything.

FLOPs are torch's count (2 per multiply-add, forward + backward); saved activations are the bytes that autograd keeps
for the backward pass. The memory of a rank is estimated in profiling/memory_plan.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pfcluster.checkpoint.tensor_shards import TensorShards
from pfcluster.config import RunConfig
from pfcluster.data.batch import Batch
from pfcluster.data.transforms import AugmentParams
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine, StateDict
from pfcluster.engine.factory import prepare_module
from pfcluster.models import factory
from pfcluster.models.mae import MAE
from pfcluster.training.factory import needs_double_backward
from pfcluster.training.finetune import finetune_step
from pfcluster.training.loss_balancing import LossBalancer
from pfcluster.training.mae import mae_step
from pfcluster.training.pf_mag import pf_mag_step
from pfcluster.training.pf_mag_terms import loss_settings

SAMPLE = 4
"""Images of a counted micro-batch; counts are linear in the number of images."""


@dataclass(frozen=True)
class Profile:
    """Cost of a training step. FLOPs and saved bytes are per image."""

    train_parameters: int
    test_parameters: int
    flops: float
    saved_bytes: float


class CountingEngine(Engine):
    """An engine for meta or fake tensors: forward and backward without optimizer, communication or state."""

    backend = "none"

    def __init__(self, module: nn.Module, *, precision: str = "fp32", double_backward: bool = False) -> None:
        world = World(0, 1, torch.device("cpu"))
        super().__init__(module, world, precision=precision, ema=0.0, double_backward=double_backward)

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        with self.autocast():
            return self.module(*inputs, **named)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _step(self) -> Tensor:
        self.module.zero_grad(set_to_none=True)
        return torch.zeros((), device=next(self.module.parameters()).device)

    def set_lr(self, lr: float) -> None:
        """No effect: there is no optimizer."""

    def sync_after_load(self) -> None:
        """No effect: there is no state to load."""

    def _weights(self) -> TensorShards:
        return {}

    def _optimizer_state(self) -> TensorShards:
        return {}

    def _whole(self, *, averaged: bool) -> StateDict:
        return {}


def profile(config: RunConfig, classes: int, *, identity_net: nn.Module | None = None, warmup: bool = False) -> Profile:
    """Count one training step, of PF-MAG's adversarial part or of its warm-up. φ is included if `identity_net` is given
    (on the meta device).

    With gradient accumulation PF-MAG runs the forward pass of PF-ViT twice per micro-batch. All micro-batches cost the
    same, so at most two are counted. FLOPs of an R1 penalty at every k-th step count as 1/k; the saved bytes are those
    of a step with it.
    """
    parts = min(config.engine.grad_accumulation_steps, 2)
    images = SAMPLE * (config.pf_mag.generate_every if config.objective == "pf_mag" else 1)
    with torch.device("meta"):
        modules = factory.build(config, classes, load_init=False)
        engines = {
            name: CountingEngine(
                prepare_uncompiled(config, name, module), double_backward=needs_double_backward(config, name)
            )
            for name, module in modules.items()
        }
        batches = empty_batches(config, images, parts)

        def count(*, with_r1: bool) -> tuple[int, int]:
            return count_step(
                lambda: run_step(config, engines, batches, identity_net, warmup=warmup, with_r1=with_r1), modules
            )

        flops, saved = count(with_r1=True)
        every = config.pf_mag.r1_every
        if every > 1:
            flops = (flops + (every - 1) * count(with_r1=False)[0]) // every
    counts = factory.parameter_counts(modules)
    return Profile(
        train_parameters=counts["train"],
        test_parameters=counts["test"],
        flops=flops / (images * parts),
        saved_bytes=saved / (images * parts),
    )


def prepare_uncompiled(config: RunConfig, name: str, module: nn.Module) -> nn.Module:
    """Prepare a module as its engine does (activation checkpointing, attention kernels), without compiling it."""
    options = replace(config.engine, compile=False)
    prepare_module(module, options, options.backend, double_backward=needs_double_backward(config, name))
    return module


def empty_batches(config: RunConfig, images: int, parts: int) -> list[Batch]:
    """Micro-batches of a step, `parts` of `images` images each, on torch's default device. Views of one batch, as
    `data.batch.make_micro_batches` makes them. Images, labels and orders are uninitialised; the discriminator's
    augmentation changes nothing.
    """
    count = images * parts
    patches = (config.data.size // config.model.patch) ** 2
    batch = Batch(
        torch.empty(count, 3, config.data.size, config.data.size),
        torch.empty(count, dtype=torch.long),
        torch.empty(count, patches, dtype=torch.long) if config.hides_patches else None,
        discriminator_augments=_identical_augments(config, images, parts),
    )
    return [batch.part(number, parts) for number in range(parts)]


def _identical_augments(config: RunConfig, images: int, parts: int) -> tuple[AugmentParams, ...]:
    if config.objective != "pf_mag" or not config.discriminator_augment.transforms:
        return ()
    generated = parts * math.ceil(images / config.pf_mag.generate_every)
    affine = torch.eye(2, 3).expand(generated, -1, -1)
    unchanged = AugmentParams(affine, torch.ones(generated, 3), torch.zeros(generated, 4))
    return (unchanged,) * (config.pf_mag.discriminator_updates + 1)


def run_step(
    config: RunConfig,
    engines: Mapping[str, Engine],
    batches: Sequence[Batch],
    identity_net: nn.Module | None,
    *,
    warmup: bool = False,
    with_r1: bool = True,
) -> None:
    """Run a step of the config's objective, without data loading and logging: of PF-MAG's adversarial part with the R1
    penalty that the config may have, or of its `warmup`.
    """
    engine = engines["model"]
    model = engine.module
    if isinstance(model, MAE):
        mae_step(batches, engine, kept=model.kept, patch=config.model.patch, norm_pixels=config.mae.norm_pixels)
    elif config.objective == "finetune":
        finetune_step(batches, engine, class_weights=None, label_smoothing=config.classifier.label_smoothing)
    else:
        settings = loss_settings(config.pf_mag, 0, None, 0.0, identity_net)
        balance = LossBalancer(config.pf_mag.weights, False, 1, 1.0, 1.0, engine.world)
        pf_mag_step(batches, engine, engines["discriminator"], settings, balance, warmup=warmup, with_r1=with_r1)


def count_step(step: Callable[[], None], modules: dict[str, nn.Module]) -> tuple[int, int]:
    """FLOPs of a step on the meta device, and the bytes that autograd saves in it, without the modules' parameters."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    parameters = {
        parameter.untyped_storage()._cdata for module in modules.values() for parameter in module.parameters()
    }
    saved: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = (storage.nbytes(), storage)  # keep a reference, so that the address is not reused
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return counter.get_total_flops(), sum(size for size, _ in saved.values())
