"""`auto` takes ZeRO where it is right, and otherwise says why not."""

from __future__ import annotations

import json

import pytest

from tests.distributed.ranks import launch


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    result = tmp_path_factory.mktemp("auto") / "result.json"
    launch("auto_worker.py", [str(result)], 2)
    return json.loads(result.read_text())


def test_zero_is_taken_where_it_trains_what_one_process_trains(choices):
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
def test_zero_is_passed_over_with_the_reason_where_it_is_wrong_broken_or_missing(choices, state, words):
    backend, reason = choices[state]
    assert backend == "fsdp2"
    assert words in reason


def test_only_engines_that_know_the_options_are_tried(choices):
    assert choices["sharing"][0] == "fsdp2"
    assert "zero2" not in choices["sharing"][1]
