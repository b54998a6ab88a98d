"""A run on this machine cannot be reached from another."""

from __future__ import annotations

from pfcluster.launch.processes import rank_environments
from tests.distributed.ranks import HERE, Rank

LOOPBACK = "0100007F"
"""127.0.0.1 as /proc/net/tcp writes it."""


def test_the_ranks_of_a_local_run_listen_on_the_loopback_alone() -> None:
    started = [Rank(HERE / "loopback_worker.py", [], environment) for environment in rank_environments(2, 1)]
    addresses = [process.communicate(timeout=300)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(addresses[0]) == 2, "the store's server and gloo"
    assert len(addresses[1]) == 1, "gloo"
    assert {address for rank in addresses for address in rank} == {LOOPBACK}
