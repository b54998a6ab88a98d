"""`engine.backend auto` takes ZeRO if it passes the self-check, and otherwise reports the reason."""

from __future__ import annotations

import json

import pytest

from tests.distributed.ranks import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    result = tmp_path_factory.mktemp("auto") / "result.json"
    launch("auto_worker.py", [str(result)], 2)
    return json.loads(result.read_text())


def test_auto_takes_zero_if_it_matches_one_process(choices):
    backend, reason = choices["well"]
    assert backend == "zero2"
    assert reason.startswith("differs from one process by no more than")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("wrong", "not zero2: its weights differ from one process by"),
        ("broken", "not zero2: "),
        ("missing", "not zero2: deepspeed is not installed"),
    ],
)
def test_auto_rejects_wrong_broken_or_missing_zero_with_reason(choices, state, words):
    backend, reason = choices[state]
    assert backend == "fsdp2"
    assert words in reason


def test_auto_tries_only_backends_that_support_the_options(choices):
    assert choices["sharing"][0] == "fsdp2"
    assert "zero2" not in choices["sharing"][1]
