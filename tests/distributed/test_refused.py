"""Steps that some backend would silently compute wrong raise with every engine, before a weight has changed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pfcluster.config import ConfigError, EngineConfig, OptimConfig, PfMagConfig, RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.factory import check_backend, choose_backend
from tests.distributed.ranks import launch
from tests.distributed.refused_worker import BACKENDS, WRONG

WORDS = {
    "frozen_but_through_the_engine": "a frozen engine was called",
    "raw_but_not_frozen": "raw module was called with its gradients on",
    "not_frozen_and_through_the_engine": "in another engine's backward",
    "two_synchronised_backwards_in_a_step": "a synchronised pass is the last of its step",
    "two_forwards_for_one_backward": "a synchronised pass|two forward passes wait",
    "a_step_without_a_synchronised_pass": "must follow the backward of a synchronised pass",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    result = tmp_path_factory.mktemp("refused") / "result.json"
    launch("refused_worker.py", [str(result)], 2)
    return json.loads(result.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [each.__name__ for each in WRONG])
def test_wrong_step_raises(outcomes, backend, wrong):
    outcome = outcomes[f"{backend}/{wrong}"]
    assert any(word in outcome["raised"] for word in WORDS[wrong].split("|"))
    assert outcome["pf_vit_unchanged"]
    assert outcome["pf_vit_steps"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_pf_vit_update_does_not_change_discriminator_on_any_backend(outcomes, backend):
    assert outcomes[f"{backend}/right"] == {
        "discriminator_unchanged": True,
        "discriminator_changed_by_its_update": True,
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "ddp", "offload_optimizer": True}, "zero1, zero2, zero3"),
        ({"backend": "ddp", "precision": "bf16_params"}, "fsdp2, zero1"),
        ({"backend": "zero2", "fsdp_shard_size": 2}, "fsdp2"),
        ({"backend": "zero3", "compile": True}, "ddp, fsdp2, zero1, zero2"),
    ],
)
def test_unsupported_option_is_rejected(options, words):
    with pytest.raises(ConfigError, match=rf"engine.backend must be one of {words}"):
        EngineConfig(**options)


def test_r1_is_rejected_with_zero3():
    penalty = PfMagConfig(r1=1.0)
    with pytest.raises(ConfigError, match="ZeRO-3 cannot differentiate twice"):
        RunConfig(engine=EngineConfig(backend="zero3"), pf_mag=penalty)
    RunConfig(engine=EngineConfig(backend="zero2"), pf_mag=penalty)


def test_ema_of_the_discriminator_is_rejected():
    with pytest.raises(ConfigError, match=r"discriminator_optim.ema must be 0"):
        RunConfig(discriminator_optim=OptimConfig(ema=0.9))


def test_shard_size_must_divide_the_number_of_processes():
    with pytest.raises(ConfigError, match=r"fsdp_shard_size must divide the number of processes \(6\), got 4"):
        check_backend(EngineConfig(backend="fsdp2", fsdp_shard_size=4), 6)


def test_missing_deepspeed_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs deepspeed, which is not installed: pip install"):
        check_backend(EngineConfig(backend="zero2"), 2)


def test_auto_takes_ddp_for_one_process():
    import torch

    choice = choose_backend(EngineConfig(), World(0, 1, torch.device("cpu")))
    assert (choice.backend, choice.reason) == ("ddp", "a single process needs no distribution")
