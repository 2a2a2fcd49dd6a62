"""Workers that die by themselves: killed by Ray's memory monitor, by their stages, or on a node where none can live."""

import logging
import os
import re
from pathlib import Path

import psutil
import pytest
import ray

from cvit.engine.environment import prepare
from cvit.engine.execution import callback, execute
from cvit.engine.execution import nodes as nodes_module
from cvit.engine.execution.queue import MOST_DEATHS
from cvit.engine.planning.progress import Outcome
from tests.chaos.nodes import Nodes
from tests.chaos.processes import MARK
from tests.engine.test_ray_faults import order, train
from tests.support.misbehaving import MisbehavingTrainer
from tests.support.plans import Lines, make_plan, make_progress
from tests.support.scripts import ROOT, TINY, sweep, sweep_with_ray

INJECT = Path(__file__).parent / "inject"
ROOM_BYTES = 2.5e9
"""The memory that a worker can take before Ray's monitor kills it."""
GRID = ("--min-steps", "16", "--data-fraction", "0.1", "--init-scheme", "random", "--tracking-uri", "none")


@pytest.fixture
def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of orders for a sweep that runs as a user's."""
    folder = tmp_path / "inject"
    folder.mkdir()
    monkeypatch.setenv(MARK, str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(INJECT), str(ROOT)]))
    return folder


def test_a_worker_killed_for_memory_costs_no_other_trial_and_the_next_run_does_it(
    tmp_path: Path, inject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    share = (memory.total - memory.available + ROOM_BYTES) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{share:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    options = (*TINY, *GRID, "--seeds", "3", "--max-pack", "1")
    greedy = list(make_plan(tmp_path / "storage", *options).stages)[1]
    (inject / f"memory-{greedy}").write_text("x\n" * 99)
    said = sweep_with_ray(tmp_path, *options, exit_code=1)
    assert re.search(
        rf"stage {greedy}: killed for memory: [\d.]+ GiB of [\d.]+ on node \S+; try --max-pack or fewer", said
    )
    assert f"failed: stage {greedy} killed its worker {MOST_DEATHS} times: killed for memory: " in said
    assert "1 of 3 trials failed; running the command again retries them." in said
    assert "Traceback" not in said and "Top 10 memory users" not in said and "lost to faults" in said
    (inject / f"memory-{greedy}").unlink()
    assert "3 of 3 trials done" in sweep(tmp_path, *options)


def test_a_stage_that_kills_its_worker_in_a_pack_costs_no_other_trial(tmp_path: Path, inject: Path) -> None:
    options = (*TINY, *GRID, "--seeds", "12", "--max-pack", "8")
    poison = list(make_plan(tmp_path / "storage", *options).stages)[3]
    (inject / f"kill-{poison}").write_text("x\n" * 99)
    said = sweep_with_ray(tmp_path, *options, exit_code=1)
    assert f"failed: stage {poison} killed its worker {MOST_DEATHS} times: ActorDiedError: " in said
    assert "1 of 12 trials failed; running the command again retries them." in said
    assert "Traceback" not in said


def test_a_node_whose_workers_all_die_at_their_start_is_said_and_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "PackTrainer", MisbehavingTrainer)
    for module in (nodes_module, callback):
        monkeypatch.setattr(module, "MOST_DEATHS", 2)
    prepare()
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "2")
    nodes = Nodes(tmp_path, count=2)
    try:
        ray.init(nodes.address, log_to_driver=False, logging_level=logging.CRITICAL)
        bad = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU"))
        order(tmp_path, f"start-{bad}")
        long = (*TINY, *GRID[2:], "--min-steps", "600", "--seeds", "8")
        progress, follower = make_progress(tmp_path / "storage", *long), Lines()
        assert set(train(progress, tmp_path, follower).values()) == {Outcome("done")}
        (line,) = [line for line in follower.lines if line.startswith("node ")]
        assert bad[:8] in line and "2 workers in a row died at their start, so it is avoided: ActorDiedError" in line
        place = follower.lines.index(line)
        before, after = (
            [line for line in lines if line.startswith("lost a worker")]
            for lines in (follower.lines[:place], follower.lines[place:])
        )
        assert len(before) == 2, "it is avoided at the second death"
        # Of two trials that are handed out at a time, one may have been given its place before that.
        assert len(after) <= 1, "it is really avoided"
    finally:
        ray.shutdown()
        nodes.end()
