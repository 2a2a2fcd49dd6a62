"""A cluster loses nodes, and then its head, while a sweep runs on it."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.ledger import LEDGER
from tests.chaos.nodes import Nodes
from tests.chaos.processes import wait_for_none
from tests.chaos.test_chaos import FAULTS, PAIRS, undisturbed
from tests.support.plans import make_plan

NODE_FAULTS = 6


def lose_nodes(nodes: Nodes, count: int, campaign: Campaign, process: "subprocess.Popen[str]") -> None:
    for number in range(count):
        if not campaign.wait_for_training(process):
            return
        hard = number % 2 == 0
        LEDGER.faults["node lost" if hard else "node drained"] += 1
        (nodes.lose if hard else nodes.drain)()
        nodes.add()


@pytest.mark.skipif(not FAULTS, reason="part of the long form: make chaos")
@pytest.mark.timeout(3600)
def test_lost_nodes_and_a_lost_head(tmp_path: Path) -> None:
    options = (*PAIRS, "--min-steps", "2000")
    reference = undisturbed(tmp_path / "undisturbed", options)
    (tmp_path / "sweep").mkdir()
    plan = make_plan(tmp_path / "sweep/storage", *options)
    with Campaign(tmp_path / "sweep", options, plan, reference, seed=0) as campaign:
        nodes = Nodes(campaign.inject, count=2)
        campaign.options = (*options, "--address", nodes.address)
        try:
            code = campaign.session(
                lambda c, process: lose_nodes(nodes, NODE_FAULTS, c, process),
                lambda c, process: lose_head(nodes, c, process),
            )
        finally:
            nodes.end()
        assert code != 0
        assert "trials done. On a new cluster, continue with:" in campaign.said
        print(f"with exit code {code}, saying last: {campaign.said.strip().splitlines()[-1]}")
        wait_for_none(campaign.inject)
        campaign.options = options
        campaign.finish()


def lose_head(nodes: Nodes, campaign: Campaign, process: "subprocess.Popen[str]") -> None:
    assert campaign.wait_for_training(process), "the sweep ended before its cluster's head was lost"
    LEDGER.faults["head lost"] += 1
    nodes.lose_head()
    started = time.monotonic()
    process.wait(timeout=200)
    print(f"the driver ended {time.monotonic() - started:.0f} s after its cluster's head")
