"""One rank: takes steps that some backend would silently compute wrong, with every engine, and writes the outcomes.

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


def update_discriminator(discriminator: Engine, images: Tensor) -> None:
    discriminator.backward(discriminator(images).square().mean())
    discriminator.step()


def frozen_but_through_the_engine(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    output = pf_vit(images)
    update_discriminator(discriminator, images)
    with discriminator.frozen():
        pf_vit.backward(discriminator(output.poker).mean())


def raw_but_not_frozen(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    output = pf_vit(images)
    update_discriminator(discriminator, images)
    pf_vit.backward(discriminator.module(output.poker).mean())


def not_frozen_and_through_the_engine(pf_vit: Engine, discriminator: Engine, images: Tensor) -> None:
    output = pf_vit(images)
    update_discriminator(discriminator, images)
    pf_vit.backward(discriminator(output.poker, sync=False).mean())


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


def outcome(wrong: Callable[[Engine, Engine, Tensor], None], backend: str, group: World) -> dict[str, object]:
    """What a wrong step raised, whether PF-ViT's weights changed, and the number of updates of both engines."""
    config = parity.tiny_config("pf_mag", EngineConfig(backend=backend, device="cpu"))  # type: ignore[arg-type]
    engines = build_engines(config, backend, factory.build(config, parity.CLASSES), group)
    pf_vit, discriminator = engines["model"], engines["discriminator"]
    images = torch.rand(4, 3, 32, 32)
    before = {name: value.clone() for name, value in pf_vit.model_state().items()}
    raised = None
    try:
        wrong(pf_vit, discriminator, images)
    except EngineError as error:
        raised = str(error)
    after = pf_vit.model_state()
    unchanged = all(torch.equal(after[name], value) for name, value in before.items())
    return {
        "raised": raised,
        "pf_vit_unchanged": unchanged,
        "discriminator_steps": discriminator.updates,
        "pf_vit_steps": pf_vit.updates,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with world("cpu", 300) as group:
        outcomes = {}
        for backend, wrong in product(BACKENDS, WRONG):
            outcomes[f"{backend}/{wrong.__name__}"] = outcome(wrong, backend, group)
        # a correct step: the discriminator's weights before and after PF-ViT's update
        for backend in BACKENDS:
            config = parity.tiny_config("pf_mag", EngineConfig(backend=backend, device="cpu"))  # type: ignore[arg-type]
            engines = build_engines(config, backend, factory.build(config, parity.CLASSES), group)
            pf_vit, discriminator = engines["model"], engines["discriminator"]
            images = torch.rand(4, 3, 32, 32)
            output = pf_vit(images)
            update_discriminator(discriminator, images)
            before = {name: value.clone() for name, value in discriminator.model_state().items()}
            with discriminator.frozen() as frozen_discriminator:
                pf_vit.backward(
                    frozen_discriminator(output.poker).square().mean() + output.reconstruction.square().mean()
                )
            pf_vit.step()
            after = discriminator.model_state()
            unchanged = all(torch.equal(after[name], value) for name, value in before.items())
            update_discriminator(discriminator, images)
            changed = any(not torch.equal(discriminator.model_state()[name], value) for name, value in before.items())
            outcomes[f"{backend}/right"] = {
                "discriminator_unchanged": unchanged,
                "discriminator_changed_by_its_update": changed,
            }
        if group.is_main:
            Path(sys.argv[1]).write_text(json.dumps(outcomes))
