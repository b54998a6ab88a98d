"""Attention kernels of the discriminator: fused ones on GPUs wherever R1 does not differentiate a pass twice."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pfcluster.config import EngineConfig
from pfcluster.data.batch import make_micro_batches
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.engine.attention import AttentionKernels, attend_with
from pfcluster.models import factory
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.parity import CLASS_NAMES, CLASSES, tiny_config

SINGLE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "twice", "fused"), [("cuda", False, True), ("cuda", True, False), ("cpu", 0, False)]
)
def test_fused_kernels_on_gpus_unless_the_pass_is_differentiated_twice(device: str, twice: bool, fused: bool) -> None:
    with FakeTensorMode():
        tokens = torch.empty(2, 3, 4, device=device)
        before = torch.backends.cuda.flash_sdp_enabled()
        called: list[str] = []

        def forward(name: str, _: torch.Tensor) -> bool:
            called.append(name)
            return torch.backends.cuda.flash_sdp_enabled()

        plain, compiled = partial(forward, "plain"), partial(forward, "compiled")
        inside = attend_with(AttentionKernels(bool(twice)), plain, compiled, tokens)
    assert (before, inside) == (True, fused)
    assert called == ["plain" if twice else "compiled"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_passes_with_r1_are_differentiated_twice(checkpointing: bool) -> None:
    config = tiny_config("pf_mag", EngineConfig(activation_checkpointing=checkpointing), r1=0.5, stabilised=True)
    options = {"discriminator_updates": 1, "warmup_steps": 0, "erasure_start": 0}
    config = replace(config, pf_mag=replace(config.pf_mag, **options))  # r1_every 2
    modules = factory.build(config, CLASSES)
    attention = modules["discriminator"].shard_units()[0].get_submodule("attn")
    engines = build_engines(config, "ddp", modules, SINGLE)
    choice = engines["discriminator"].attention
    assert choice is not None
    assert engines["model"].attention is None
    passes: list[tuple[bool, bool]] = []
    attention.register_forward_hook(
        lambda module, inputs, output: passes.append((choice.twice, not torch.backends.cuda.flash_sdp_enabled()))
    )
    objective = build_objective(config, engines, CLASS_NAMES, SINGLE)
    raw = RawBatch(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % CLASSES)
    twice: list[list[bool]] = []
    for step in range(2):
        passes.clear()
        objective.step(make_micro_batches(raw, config, step, SINGLE), step)
        twice.append([differentiated for differentiated, _ in passes])
        assert all(math_only for _, math_only in passes)  # on a CPU always
    # the discriminator's update with the passes that its backward repeats, then passes of the frozen discriminator
    assert twice[0] == sorted(twice[0], reverse=True)
    assert set(twice[0]) == {True, False}
    assert set(twice[1]) == {False}
