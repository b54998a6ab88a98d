"""Every engine trains on 2 real processes, and PF-MAG on 1 and 4 too, what one process trains: weights, losses,
gradient norms.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from tests.distributed.ranks import launch

BACKENDS = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
R1 = BACKENDS[:4]
"""ZeRO-3 cannot differentiate twice."""
OBJECTIVES = ("mae", "finetune", "pf_mag")
RANKS = (1, 2, 4)
TOLERANCE = 1e-6
"""Relative, in fp32: of all weights after four steps, and of any loss or norm at any step. Engines sum in other orders;
a sum of n fp32 values has a relative error of about 6e-8 * sqrt(n)."""
BF16_WEIGHTS = 2e-3
"""Relative, of all weights: Adam moves a weight by at most its learning rate, whatever the rounding of its gradient."""
BF16_METRICS = 3e-2
"""Relative, of losses and gradient norms: bf16 has 8 bits of precision, 4e-3, and rounds in every layer."""


def case(backend: str, objective: str, *, r1: float = 0.0, stabilised: bool = False, **options: Any) -> dict[str, Any]:
    return {"backend": backend, "objective": objective, "r1": r1, "stabilised": stabilised, "options": options}


PLAIN = [
    case(backend, objective, grad_accumulation_steps=parts)
    for backend, objective, parts in product(BACKENDS, OBJECTIVES, (1, 2))
    if objective == "pf_mag" or parts == 2
]
OPTIONS = [
    *[case(backend, "pf_mag", r1=0.5, activation_checkpointing=True, grad_accumulation_steps=2) for backend in R1],
    case("zero3", "pf_mag", activation_checkpointing=True),
    *[case(backend, "pf_mag", stabilised=True, r1=0.5, grad_accumulation_steps=2) for backend in R1],
    case("zero3", "pf_mag", stabilised=True, grad_accumulation_steps=2),
    *[case(backend, "pf_mag", offload_optimizer=True) for backend in BACKENDS[2:]],
]
BF16 = [
    *[case(backend, "pf_mag", precision="bf16") for backend in BACKENDS],
    *[case(backend, "pf_mag", precision="bf16_params", grad_accumulation_steps=2) for backend in BACKENDS[1:]],
    case("fsdp2", "pf_mag", r1=0.5, precision="bf16_params", grad_accumulation_steps=2),
]
HYBRID = [case("fsdp2", "pf_mag", fsdp_shard_size=2, grad_accumulation_steps=2)]
COMPILED = [case("ddp", "pf_mag", r1=0.5, compile=True)]


def name(each: dict[str, Any]) -> str:
    values = {"r1": each["r1"], "stabilised": each["stabilised"], **each["options"]}
    options = [f"{key}={value}" for key, value in values.items() if value]
    return "-".join([each["backend"], each["objective"], *options])


def is_tested(each: dict[str, Any], ranks: int) -> bool:
    """Whether a plain case is trained on so many ranks: all on 2, PF-MAG with accumulation on 1 and 4 too."""
    return ranks == 2 or (each["objective"], each["options"]["grad_accumulation_steps"]) == ("pf_mag", 2)


def is_quick(each: dict[str, Any], ranks: int) -> bool:
    """Whether a plain case is in the README's test command: PF-MAG on two processes, once per engine."""
    return ranks == 2 and each["objective"] == "pf_mag" and each["options"]["grad_accumulation_steps"] == 1


@pytest.fixture(scope="module")
def differences(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], list[float]]:
    """Differences of weights and metrics by number of ranks and case, for the cases of the selected tests."""
    root = tmp_path_factory.mktemp("parity")
    selected: dict[int, dict[str, dict[str, Any]]] = {ranks: {} for ranks in RANKS}
    for item in request.session.items:
        if item.path == request.path and isinstance(item, pytest.Function):
            ranks, each = item.callspec.params["ranks"], item.callspec.params["each"]
            selected[ranks][name(each)] = each
    measured = {}
    for ranks, cases in selected.items():
        if not cases:
            continue
        result = root / f"{ranks}.json"
        launch("parity_worker.py", [str(result), json.dumps(list(cases.values()))], ranks)
        for case_name, difference in zip(cases, json.loads(result.read_text()), strict=True):
            measured[ranks, case_name] = difference
    return measured


@pytest.mark.parametrize(
    ("each", "ranks"),
    [
        pytest.param(each, ranks, id=f"{name(each)}-{ranks}", marks=() if is_quick(each, ranks) else pytest.mark.slow)
        for each, ranks in product(PLAIN, RANKS)
        if is_tested(each, ranks)
    ],
)
def test_engine_matches_one_process(differences, each, ranks):
    assert max(differences[ranks, name(each)]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
@pytest.mark.parametrize("each", OPTIONS, ids=name)
def test_options_change_only_rounding(differences, each, ranks):
    assert max(differences[ranks, name(each)]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4])
@pytest.mark.parametrize("each", HYBRID, ids=name)
def test_hybrid_sharding_matches_one_process(differences, each, ranks):
    assert max(differences[ranks, name(each)]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1])
@pytest.mark.parametrize("each", COMPILED, ids=name)
def test_compiled_blocks_match_plain_ones(differences, each, ranks):
    assert max(differences[ranks, name(each)]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
@pytest.mark.parametrize("each", BF16, ids=name)
def test_bf16_is_close_to_fp32_but_not_equal(differences, each, ranks):
    weights, metrics = differences[ranks, name(each)]
    assert 1e-5 < weights < BF16_WEIGHTS
    assert metrics < BF16_METRICS
