"""Self-check of a backend: train two tiny adversarial engines with it and in one process, and compare the weights.

Takes about a second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine

TOLERANCE = 1e-4
"""Largest relative difference of all weights after three Adam steps. Rounding errors are far below it, wrong gradients
far above."""
WIDTH, BATCH_PER_RANK, STEPS = 24, 4, 3

Builder = Callable[[nn.Module, OptimConfig, EngineConfig, World], Engine]


class _Net(nn.Module):
    """Two layers that can be sharded separately."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU())
        self.second = nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """b WIDTH -> b outputs."""
        return self.second(self.first(inputs))

    def shard_units(self) -> list[nn.Module]:
        """Both layers."""
        return [self.first, self.second]


def difference(build: Builder, reference: Builder, engine: EngineConfig, world: World) -> float:
    """Train with engines of `build` on this world and with engines of `reference` in this process alone; -> norm of the
    difference of all weights over the norm of the reference's. A collective. Raises what the backend raises.
    """
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(STEPS, BATCH_PER_RANK * world.size, WIDTH, generator=generator).to(world.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = _Net(WIDTH), _Net(1)
    plain = replace(engine, precision="fp32")
    single = World(0, 1, world.device)
    expected = _train(copy.deepcopy(nets), reference, plain, single, samples)
    weights = _train(nets, build, plain, world, samples)
    return float((weights - expected).norm() / expected.norm())


def _train(
    nets: tuple[nn.Module, nn.Module], build: Builder, engine: EngineConfig, world: World, samples: Tensor
) -> Tensor:
    """All weights after adversarial training on the samples, flat."""
    options = OptimConfig(algorithm="adamw", lr=1e-2, clip_norm=1.0)
    generator, discriminator = (build(net, options, engine, world) for net in nets)
    for batch in samples:
        real = batch[world.slice_of(len(batch))]
        fake = generator(real)
        scores = discriminator(torch.cat([real, fake.detach()]))
        discriminator.backward((scores[: len(real)] - 1).square().mean() + scores[len(real) :].square().mean())
        discriminator.step()
        with discriminator.frozen() as frozen_discriminator:
            generator.backward((frozen_discriminator(fake) - 1).square().mean() + (fake - real).square().mean())
        generator.step()
    states = generator.model_state(), discriminator.model_state()
    return torch.cat([state[name].flatten().double() for state in states for name in sorted(state)])
