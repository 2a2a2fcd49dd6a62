"""Workers that die under their stages: who is the cause is found out, and no stage is tried for ever."""

import itertools
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from cvit.engine.execution.deaths import AT_ONCE_S, MOST_AT_ONCE
from cvit.engine.execution.faults import Fault, fault_of_trial
from cvit.engine.execution.nodes import MOST_DEATHS as MOST_NODE_DEATHS
from cvit.engine.execution.nodes import Nodes
from cvit.engine.execution.queue import DEATHS_TOGETHER, MOST_DEATHS, StagePack, StageQueue
from cvit.engine.planning.progress import Outcome
from cvit.stages import Stage
from tests.engine.test_retries import TWO_PHASES, Clock, fail, finish, keys, limits, taken
from tests.support.plans import SMALL, make_progress

DIED = Fault("machine", "ActorDiedError: gone", worker_died=True)
LOST = Fault("machine", "NodeDiedError: gone")
FOR_MEMORY = Fault("machine", "killed for memory", worker_died=True, for_memory=True)
SEEDS = ("--data-fraction", "0.05", "--init-scheme", "random", *SMALL[8:], "--seeds")


class Sweep:
    """A sweep of stages of one shape, in packs of eight on two workers, whose clock the test moves."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, num_stages: int) -> None:
        self.progress = make_progress(folder, *SEEDS, str(num_stages))
        self.queue = StageQueue(self.progress, limits(self.progress, 8), 2)
        self.clock = Clock(monkeypatch)
        self.names = map(str, itertools.count())
        self.lines: list[str] = []

    def take(self) -> tuple[str, StagePack]:
        name = next(self.names)
        while (pack := self.queue.next_pack(name)) is None:
            self.clock.now += 1
        return name, pack

    def die(self, name: str, fault: Fault = DIED) -> None:
        self.lines += fail(self.queue, name, fault)

    def finish(self, name: str, pack: StagePack) -> None:
        for stage in pack:
            self.advance(stage)
            finish(self.queue, self.progress, stage)
        self.queue.pack_ended(name)

    def advance(self, stage: Stage) -> None:
        self.queue.stage_advanced(stage.key)

    def run(self, poison: set[str]) -> list[StagePack]:
        """Trains all packs one after another; those with a poisonous stage die."""
        packs = []
        while not self.queue.is_finished:
            name, pack = self.take()
            packs.append(pack)
            self.clock.now += 10
            if poison & set(keys(pack)):
                self.die(name)
            else:
                self.finish(name, pack)
            assert len(packs) < 200, "this sweep has no end"
        return packs


@pytest.mark.parametrize("num_poisonous", [1, 3])
def test_a_stage_that_kills_its_worker_fails_in_the_end_and_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_poisonous: int
) -> None:
    sweep = Sweep(tmp_path, monkeypatch, 24)
    poison = set(list(sweep.progress.plan.stages)[:24:8][:num_poisonous])
    packs = sweep.run(poison)
    outcomes = sweep.queue.outcomes()
    for key in poison:
        assert outcomes.pop(key) == Outcome("failed", f"killed its worker {MOST_DEATHS} times: ActorDiedError: gone")
        assert [len(pack) for pack in packs if key in keys(pack)][-3:] == [1, 1, 1]
        assert f"failed: stage {key} killed its worker {MOST_DEATHS} times: ActorDiedError: gone" in sweep.lines
    assert len(outcomes) == 24 - num_poisonous and set(outcomes.values()) == {Outcome("done")}


def test_a_checkpoint_between_two_deaths_clears_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path, monkeypatch, 1)
    for _ in range(3 * MOST_DEATHS):
        name, (stage,) = sweep.take()
        sweep.advance(stage)
        sweep.clock.now += 10
        sweep.die(name)
    assert not any(line.startswith("failed") for line in sweep.lines)


def test_what_starts_from_a_stage_that_kills_its_worker_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *TWO_PHASES)
    queue, clock = StageQueue(progress, {}), Clock(monkeypatch)
    for number in itertools.count():
        if queue.is_finished:
            break
        clock.now += 100
        (stage,) = taken(queue, str(number))
        if stage.phase == "convolution":
            fail(queue, str(number), DIED)
        else:
            finish(queue, progress, stage)
            queue.pack_ended(str(number))
    assert sorted(outcome.kind for outcome in queue.outcomes().values()) == ["done", "failed", "left"]


def test_a_lost_node_is_never_held_against_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path, monkeypatch, 2)
    for _ in range(3 * MOST_DEATHS):
        name, pack = sweep.take()
        assert len(pack) == 1 or len(pack) == 2
        sweep.clock.now += 10
        sweep.die(name, LOST)
    assert not any(line.startswith("failed") for line in sweep.lines)


def test_workers_that_die_together_are_not_held_against_their_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path, monkeypatch, 24)
    for _ in range(MOST_AT_ONCE):
        packs = [sweep.take() for _ in range(3)]
        sweep.clock.now += 100
        for name, _ in packs:
            sweep.die(name)
            sweep.clock.now += AT_ONCE_S / 4
        sweep.clock.now += 100
    assert len(sweep.take()[1]) == 8, "trained together, as before"


def test_stages_that_always_kill_their_workers_at_the_same_time_fail_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *SEEDS, "2")
    queue, clock, names = StageQueue(progress, {}, 2), Clock(monkeypatch), map(str, itertools.count())
    for _ in range(MOST_AT_ONCE + MOST_DEATHS):
        pair = [next(names), next(names)]
        for name in pair:
            taken(queue, name)
        for name in pair:
            fail(queue, name, DIED)
        clock.now += 100
    assert queue.is_finished
    assert {outcome.kind for outcome in queue.outcomes().values()} == {"failed"}


def test_ray_s_memory_monitor_is_a_fault_of_the_machine_with_figures() -> None:
    text = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 0039e) "
        "was 29.91GB used / 31.40GB limit (0.952)\nOOM kill reason: …\nTop 10 memory users: PID\tMEM(GB)\tCOMMAND\n"
    )
    line = "killed for memory: 29.91 GiB of 31.40 on node 10.0.0.7; try --max-pack or fewer workers"
    assert fault_of_trial(OutOfMemoryError(text), text) == Fault("machine", line, worker_died=True, for_memory=True)
    other = fault_of_trial(OutOfMemoryError("in other words"), "in other words")
    assert other.line.startswith("killed for memory: ") and "--max-pack" in other.line


def test_a_node_whose_workers_all_die_at_their_start_is_avoided() -> None:
    nodes = Nodes()
    nodes.reported("good")
    assert [nodes.start_failed("bad") for _ in range(MOST_NODE_DEATHS)] == [*[False] * (MOST_NODE_DEATHS - 1), True]
    assert nodes.avoided == ("bad",)
    assert not nodes.are_all_avoided({"good", "bad"}) and nodes.are_all_avoided({"bad"})


def test_a_node_is_not_avoided_while_its_workers_report_in_between() -> None:
    nodes = Nodes()
    for _ in range(10):
        assert not any(nodes.start_failed("node") for _ in range(MOST_NODE_DEATHS - 1))
        nodes.reported("node")
    assert not nodes.avoided


def test_deaths_in_first_packs_count_against_a_node_only_if_others_work() -> None:
    alone = Nodes()
    assert not any(alone.first_pack_failed("node") for _ in range(100)), "it may be the stages"
    beside = Nodes()
    beside.reported("good")
    assert any(beside.first_pack_failed("bad") for _ in range(MOST_NODE_DEATHS))
    assert not any(beside.first_pack_failed("good") for _ in range(100)), "its workers have trained others"


def test_the_first_death_keeps_a_pack_apart_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path, monkeypatch, 24)
    name, suspects = sweep.take()
    sweep.die(name)
    first = suspects[0].key
    assert sweep.lines == [f"lost a worker, trying again in 1 s: stage {first} and 7 more: ActorDiedError: gone"]
    sweep.clock.now += 10
    packs = [set(keys(sweep.take()[1])) for _ in range(3)]
    assert all(pack <= set(keys(suspects)) or pack.isdisjoint(keys(suspects)) for pack in packs)
    assert [len(pack) for pack in packs] == [8, 8, 4]


def test_a_stage_killed_for_memory_again_waits_until_no_other_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = make_progress(tmp_path, *SEEDS, "2")
    queue, clock = StageQueue(progress, {}, 2), Clock(monkeypatch)
    (large,), (small,) = taken(queue, "large"), taken(queue, "small")
    for _ in range(DEATHS_TOGETHER - 1):
        fail(queue, "large", FOR_MEMORY)
        clock.now += 100
        assert taken(queue, "large") == (large,)
    fail(queue, "large", FOR_MEMORY)
    clock.now += 100
    assert queue.next_pack("large") is None and not queue.is_finished and queue.num_resting == 1
    finish(queue, progress, small)
    queue.pack_ended("small")
    assert taken(queue, "large") == (large,)


NODE_LOST = """The actor died unexpectedly before finishing this task.
\tclass_name: PackTrainer
\tactor_id: 129bd1233229d6ce5bc02b8301000000
\tpid: 13823
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 4cb1dc7f
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""


def test_the_loss_of_a_node_is_told_from_the_death_of_a_process() -> None:
    fault = fault_of_trial(RayActorError(error_msg=NODE_LOST), NODE_LOST)
    first = "RayActorError: The actor died unexpectedly before finishing this task"
    assert fault == Fault("machine", f"{first} (pid 13823 on node 10.0.0.7, its node has died)")
    died = NODE_LOST.replace("its node has died", "its worker process has died. Worker exits with an exit code 3")
    fault = fault_of_trial(RayActorError(error_msg=died), died)
    assert fault == Fault("machine", f"{first} (pid 13823 on node 10.0.0.7, exit code 3)", worker_died=True)
