"""A sweep under random faults ends like an undisturbed one.

The short form runs with all other tests; `make chaos` injects CVIT_CHAOS_FAULTS faults, drawn by CVIT_CHAOS_SEED.
"""

import itertools
import os
import random
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, Fault
from tests.chaos.faults import (
    damage_checkpoint,
    damage_journal,
    exhaust_memory,
    fill_disk,
    hang_worker,
    jump_clock,
    kill_driver,
    kill_worker,
    lock_tracker,
    make_read_only,
    other_sweep,
    poison_stage,
    raise_in_training,
    second_driver,
    sleep_driver,
    terminate_driver,
    terminate_worker,
)
from tests.chaos.ledger import LEDGER
from tests.support.plans import make_plan, make_progress, walk

FAULTS = int(os.environ.get("CVIT_CHAOS_FAULTS", "0"))
SEED = int(os.environ.get("CVIT_CHAOS_SEED", "0"))
OPTIONS = (
    *("--embed-dim", "32", "--depth", "2", "--head-dim", "4", "--mlp-ratio", "2", "--batch-size", "16"),
    *("--epochs", "0", "--evaluations", "40", "--data-fraction", "0.1", "--budget-unit", "steps"),
)
PAIRS = (*OPTIONS, "--init-scheme", "random", "two_phase", "--seeds", "2", "--max-pack", "2")
SHORT = (*PAIRS, "--min-steps", "500")
LONG = (*OPTIONS, "--init-scheme", "random", "conv_structured", "two_phase", "--seeds", "3", "--min-steps", "800")
"""A sweep with stages of several seconds each."""
LARGEST_PACKS = (1, 2, 4)
"""The largest pack of one sweep after another. On a CPU the members of a pack end bit for bit as each alone."""

ADDRESSES = ((), ("--address", "local"))
"""With Ray, and by forked workers."""

DURING: tuple[Fault, ...] = (
    *(kill_worker, terminate_worker, hang_worker, poison_stage, exhaust_memory, raise_in_training),
    *(second_driver, other_sweep, jump_clock, lock_tracker),
)
LAST: tuple[Fault, ...] = (kill_driver, kill_driver, terminate_driver, sleep_driver, fill_disk, make_read_only)


def undisturbed(folder: Path, options: tuple[str, ...]) -> Path:
    walk(make_progress(folder / "storage", *options), folder / "storage")
    return folder


@pytest.mark.parametrize("address", ADDRESSES, ids=["with Ray", "local"])
def test_short_form(tmp_path: Path, address: tuple[str, ...]) -> None:
    reference = undisturbed(tmp_path / "undisturbed", SHORT)
    (tmp_path / "sweep").mkdir()
    plan = make_plan(tmp_path / "sweep/storage", *SHORT)
    with Campaign(tmp_path / "sweep", (*SHORT, *address), plan, reference, seed=SEED) as campaign:
        campaign.session(kill_worker, second_driver, kill_driver)
        damage_checkpoint(campaign)
        damage_journal(campaign)
        campaign.session(jump_clock, raise_in_training, poison_stage, terminate_driver)
        damage_journal(campaign)
        campaign.finish()


@pytest.mark.skipif(not FAULTS, reason="the long form: make chaos")
@pytest.mark.timeout(4 * 3600)
def test_long_form(tmp_path: Path) -> None:
    reference = undisturbed(tmp_path / "undisturbed", LONG)
    packs, addresses = itertools.cycle(LARGEST_PACKS), itertools.cycle(ADDRESSES)
    draw = random.Random(SEED)
    sweep = 0
    while LEDGER.faults.total() < FAULTS:
        folder = tmp_path / f"sweep-{sweep}"
        folder.mkdir()
        plan = make_plan(folder / "storage", *LONG)
        options = (*LONG, "--max-pack", str(next(packs)), *next(addresses))
        with Campaign(folder, options, plan, reference, seed=draw.randrange(2**32)) as campaign:
            while campaign.session(*(draw.choice(DURING) for _ in range(draw.randint(0, 4))), draw.choice(LAST)) != 0:
                # Stages whose checkpoints are damaged are trained again; in every other sweep none may be.
                for _ in range(draw.randint(0, 2) if sweep % 2 else 0):
                    damage_checkpoint(campaign)
                for _ in range(draw.randint(0, 2)):
                    damage_journal(campaign)
            campaign.finish()
        sweep += 1
