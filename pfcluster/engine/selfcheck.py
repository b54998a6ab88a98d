"""Does a backend train here what one process trains? A game of two tiny engines, a second long."""

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
"""Relative, of all weights after three steps of Adam: wrong gradients exceed it by orders, rounding never."""
WIDTH, EACH, STEPS = 24, 4, 3

Builder = Callable[[nn.Module, OptimConfig, EngineConfig, World], Engine]


class _Net(nn.Module):
    """Two layers, each of which may be cut."""

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
    """Train the game with `build` on this world, and with `reference` on this process alone; -> norm of the difference
    of all weights over the reference's. A collective. Raises whatever the backend raises.
    """
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(STEPS, EACH * world.size, WIDTH, generator=generator).to(world.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = _Net(WIDTH), _Net(1)
    plain = replace(engine, precision="fp32")
    alone = World(0, 1, world.device)
    wanted = _play(copy.deepcopy(nets), reference, plain, alone, samples)
    found = _play(nets, build, plain, world, samples)
    return float((found - wanted).norm() / wanted.norm())


def _play(
    nets: tuple[nn.Module, nn.Module], build: Builder, engine: EngineConfig, world: World, samples: Tensor
) -> Tensor:
    """All weights after the game, flat."""
    options = OptimConfig(algorithm="adamw", lr=1e-2, clip_norm=1.0)
    generator, discriminator = (build(net, options, engine, world) for net in nets)
    for batch in samples:
        mine = batch[world.slice_of(len(batch))]
        fake = generator(mine)
        scores = discriminator(torch.cat([mine, fake.detach()]))
        discriminator.backward((scores[: len(mine)] - 1).square().mean() + scores[len(mine) :].square().mean())
        discriminator.step()
        with discriminator.frozen() as judge:
            generator.backward((judge(fake) - 1).square().mean() + (fake - mine).square().mean())
        generator.step()
    states = generator.model_state(), discriminator.model_state()
    return torch.cat([state[name].flatten().double() for state in states for name in sorted(state)])
