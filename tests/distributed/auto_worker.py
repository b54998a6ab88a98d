"""One rank: which backend `auto` takes if ZeRO works, computes wrong weights, raises, or is missing.

`auto_worker.py RESULT`
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pfcluster.config import EngineConfig
from pfcluster.distributed.process_group import world
from pfcluster.engine import factory, zero

SETTINGS = zero.deepspeed_settings
FIND = importlib.util.find_spec


def changed(section: str, value: Any):
    """DeepSpeed's settings with one of them changed."""
    return lambda *given: SETTINGS(*given) | {section: value}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with world("cpu", 300) as group:
        options = EngineConfig(device="cpu")
        cases = {
            "well": mock.patch.object(zero, "deepspeed_settings", SETTINGS),
            "wrong": mock.patch.object(zero, "deepspeed_settings", changed("gradient_clipping", 1e-3)),
            "broken": mock.patch.object(zero, "deepspeed_settings", changed("zero_optimization", {"stage": 9})),
            "missing": mock.patch.object(
                importlib.util, "find_spec", lambda name: None if name == "deepspeed" else FIND(name)
            ),
        }
        choices = {}
        for name, state in cases.items():
            with state:
                choice = factory.choose_backend(options, group)
            choices[name] = [choice.backend, choice.reason]
        sharing = factory.choose_backend(EngineConfig(device="cpu", fsdp_shard_size=1), group)
        choices["sharing"] = [sharing.backend, sharing.reason]
        if group.is_main:
            Path(sys.argv[1]).write_text(json.dumps(choices))
