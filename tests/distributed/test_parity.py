"""Every engine trains, on 1, 2 and 4 real processes, what one process trains: weights, losses, gradient norms."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from tests.distributed.ranks import launch

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
OBJECTIVES = ("mae", "finetune", "pf_mag")
RANKS = (1, 2, 4)
TOLERANCE = 1e-6
"""Relative, in fp32: of all weights together after the steps, and of any loss or norm at any of them."""
BF16 = 3e-2


def case(backend: str, objective: str, *, r1: float = 0.0, stabilised: bool = False, **options: Any) -> dict[str, Any]:
    return {"backend": backend, "objective": objective, "r1": r1, "stabilised": stabilised, "options": options}


PLAIN = [case(*names, grad_accumulation_steps=parts) for *names, parts in product(BACKENDS, OBJECTIVES, (1, 2))]
OPTIONS = [
    *[case(backend, "pf_mag", r1=0.5, grad_accumulation_steps=parts) for backend in BACKENDS[:4] for parts in (1, 2)],
    *[
        case(backend, objective, activation_checkpointing=True)
        for backend in BACKENDS
        for objective in ("mae", "pf_mag")
    ],
    *[case(backend, "pf_mag", offload_optimizer=True) for backend in BACKENDS[2:]],
    *[
        case(backend, "pf_mag", activation_checkpointing=True, grad_accumulation_steps=2, r1=0.5)
        for backend in ("fsdp2", "zero2")
    ],
    *[
        case(backend, "pf_mag", stabilised=True, grad_accumulation_steps=parts)
        for backend in BACKENDS
        for parts in (1, 2)
    ],
    *[case(backend, "pf_mag", stabilised=True, r1=0.5) for backend in ("ddp", "fsdp2", "zero2")],
]
HALF = [
    *[case(backend, "pf_mag", precision="bf16") for backend in BACKENDS],
    *[case(backend, "pf_mag", precision="bf16_params", grad_accumulation_steps=2) for backend in BACKENDS[1:]],
]
HYBRID = [case("fsdp2", objective, fsdp_shard_size=2, grad_accumulation_steps=2) for objective in OBJECTIVES]
COMPILED = [case("ddp", "pf_mag", compile=True)]


def name(each: dict[str, Any]) -> str:
    named = {"r1": each["r1"], "stabilised": each["stabilised"], **each["options"]}
    options = [f"{key}={value}" for key, value in named.items() if value]
    return "-".join([each["backend"], each["objective"], *options])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[float]]:
    """Differences of weights and metrics by number of ranks and case."""
    root = tmp_path_factory.mktemp("parity")
    found = {}
    for ranks in RANKS:
        cases = PLAIN + {1: COMPILED, 2: OPTIONS + HALF, 4: HYBRID}[ranks]
        result = root / f"{ranks}.json"
        launch("parity_worker.py", [str(result), json.dumps(cases)], ranks)
        for each, difference in zip(cases, json.loads(result.read_text()), strict=True):
            found[ranks, name(each)] = difference
    return found


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("each", PLAIN, ids=name)
def test_engines_train_what_one_process_trains(measured, each, ranks):
    assert max(measured[ranks, name(each)]) < TOLERANCE


@pytest.mark.parametrize("each", OPTIONS, ids=name)
def test_options_change_nothing_but_rounding(measured, each):
    assert max(measured[2, name(each)]) < TOLERANCE


@pytest.mark.parametrize("each", HYBRID, ids=name)
def test_hybrid_sharding_trains_what_one_process_trains(measured, each):
    assert max(measured[4, name(each)]) < TOLERANCE


def test_compiled_blocks_train_what_plain_ones_train(measured):
    assert max(measured[1, name(COMPILED[0])]) < TOLERANCE


@pytest.mark.parametrize("each", HALF, ids=name)
def test_bf16_stays_near_fp32_and_is_not_it(measured, each):
    weights, metrics = measured[2, name(each)]
    assert 1e-5 < weights < 2e-3
    assert metrics < BF16
