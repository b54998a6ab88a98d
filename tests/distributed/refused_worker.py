"""One rank: does what is silently wrong under one backend or another, with every engine, and writes how each ended.

`refused_worker.py RESULT`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from pfcluster.config import EngineConfig
from pfcluster.distributed.process_group import World, world
from pfcluster.engine.base import Engine, EngineError
from pfcluster.models import factory
from pfcluster.training import parity
from pfcluster.training.factory import build_engines

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def discriminator_turn(discriminator: Engine, images: Tensor) -> None:
    discriminator.backward(discriminator(images).square().mean())
    discriminator.step()


def frozen_but_through_the_engine(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    views = pf_vit(images)
    discriminator_turn(discriminator, images)
    with discriminator.frozen():
        pf_vit.backward(discriminator(views.poker).mean())


def raw_but_not_frozen(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    views = pf_vit(images)
    discriminator_turn(discriminator, images)
    pf_vit.backward(discriminator.module(views.poker).mean())


def not_frozen_and_through_the_engine(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    views = pf_vit(images)
    discriminator_turn(discriminator, images)
    pf_vit.backward(discriminator(views.poker, sync=False).mean())


def two_synchronised_backwards_in_a_step(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    discriminator.backward(discriminator(images).mean())
    discriminator.backward(discriminator(-images).mean())


def two_forwards_for_one_backward(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    discriminator.backward(discriminator(images).mean() + discriminator(-images).mean())


def a_step_without_a_synchronised_pass(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    discriminator.backward(discriminator(images, sync=False).mean())
    discriminator.step()


WRONG: tuple[Callable[[Engine, Engine, Tensor], None], ...] = (
    frozen_but_through_the_engine,
    raw_but_not_frozen,
    not_frozen_and_through_the_engine,
    two_synchronised_backwards_in_a_step,
    two_forwards_for_one_backward,
    a_step_without_a_synchronised_pass,
)


def outcome(wrong: Callable[[Engine, Engine, Tensor], None], backend: str, here: World) -> dict[str, object]:
    """What a wrong step raised, and whether PF-ViT's weights, and Δ's since its own turn, stayed as they were."""
    config = parity.tiny_config("pf_mag", EngineConfig(backend=backend, device="cpu"))  # type: ignore[arg-type]
    engines = build_engines(config, backend, factory.build(config, parity.CLASSES), here)
    pf_vit, discriminator = engines["model"], engines["discriminator"]
    images = torch.rand(4, 3, 32, 32)
    before = {name: value.clone() for name, value in pf_vit.model_state().items()}
    raised = None
    try:
        wrong(pf_vit, discriminator, images)
    except EngineError as error:
        raised = str(error)
    after = pf_vit.model_state()
    same = all(torch.equal(after[name], value) for name, value in before.items())
    return {
        "raised": raised,
        "pf_vit_unchanged": same,
        "discriminator_steps": discriminator.updates,
        "pf_vit_steps": pf_vit.updates,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with world("cpu", 300) as here:
        found = {}
        for backend, wrong in product(BACKENDS, WRONG):
            found[f"{backend}/{wrong.__name__}"] = outcome(wrong, backend, here)
        # Δ's own weights across PF-ViT's whole turn, done right
        for backend in BACKENDS:
            config = parity.tiny_config("pf_mag", EngineConfig(backend=backend, device="cpu"))  # type: ignore[arg-type]
            engines = build_engines(config, backend, factory.build(config, parity.CLASSES), here)
            pf_vit, discriminator = engines["model"], engines["discriminator"]
            images = torch.rand(4, 3, 32, 32)
            views = pf_vit(images)
            discriminator_turn(discriminator, images)
            before = {name: value.clone() for name, value in discriminator.model_state().items()}
            with discriminator.frozen() as judge:
                pf_vit.backward(judge(views.poker).square().mean() + views.reconstruction.square().mean())
            pf_vit.step()
            after = discriminator.model_state()
            same = all(torch.equal(after[name], value) for name, value in before.items())
            discriminator_turn(discriminator, images)
            moved = any(not torch.equal(discriminator.model_state()[name], value) for name, value in before.items())
            found[f"{backend}/right"] = {"discriminator_unchanged": same, "discriminator_moved_in_its_own_turn": moved}
        if here.is_main:
            Path(sys.argv[1]).write_text(json.dumps(found))
