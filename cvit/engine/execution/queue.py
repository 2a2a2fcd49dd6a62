"""The queue of a plan's stages: it hands out packs, each once the parents of its stages are done."""

import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Protocol

from cvit.engine.execution.deaths import Deaths
from cvit.engine.execution.faults import CODE_RETRIES, Fault
from cvit.engine.planning.progress import Outcome, Progress
from cvit.engine.recording.backoff import pause_s
from cvit.errors import one_line
from cvit.stages import Stage

DEATHS_TOGETHER = 2
"""After so many deaths of its worker without a checkpoint in between, a stage is trained alone."""
MOST_DEATHS = 5
"""After so many, three of them alone, it has failed."""
LEAST_SHARE = 4
"""When the last stages are divided among workers, a pack keeps at least a quarter of its limit: on a GPU, small packs
take almost as long as large ones."""

LOOK_S = 2.0
"""Mean time between two looks at stages that other drivers train; it is drawn anew each time, so that two drivers that
disturb each other do not do so again."""

StagePack = tuple[Stage, ...]
"""Stages of one shape that a worker trains together."""


def named(stages: Sequence[Stage]) -> str:
    """A phrase for stages, of which the first is named."""
    more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
    return f"stage {stages[0].key}{more}"


class Claims(Protocol):
    """Keeps drivers of several sweeps from training a stage that they share."""

    def claim(self, keys: Iterable[str], most: int) -> tuple[Iterable[str], Mapping[str, str]]:
        """Claims the first stages that no other driver trains, at most so many.

        Returns:
            The stages that it got, and those that it was refused, each with the reason as a relative clause.

        Raises:
            OSError: the storage refuses to be written.
        """
        ...

    def release(self, keys: Iterable[str]) -> None:
        """Gives claims up."""
        ...


class _Alone:
    """The claims of a driver that shares its stages with no other: it gets all."""

    def claim(self, keys: Iterable[str], most: int) -> tuple[Iterable[str], Mapping[str, str]]:
        """The first so many stages."""
        return list(itertools.islice(keys, most)), {}

    def release(self, keys: Iterable[str]) -> None:
        """Nothing to do."""


ALONE = _Alone()


class StageQueue:
    """The stages that a plan still needs. The unfinished stages of a pack that failed go back into the queue.

    A pack has the name that its taker gives it, such as the id of a Tune trial.

    Attributes:
        storage_fault: why nothing can be stored any more; the queue is then finished.
    """

    def __init__(
        self,
        progress: Progress,
        limits: Mapping[Hashable, int],
        num_workers: int = 1,
        claims: Claims = ALONE,
    ) -> None:
        """
        Args:
            limits: the largest number of stages in a pack, by shape; 1 for a shape that is not named.
            num_workers: the last stages are divided among so many workers, rather than put into fewer packs.
            claims: a stage is trained only while it is claimed.
        """
        self._progress, self._limits, self._num_workers, self._claims = progress, limits, num_workers, claims
        self._claimed: set[str] = set()
        self._elsewhere: dict[str, tuple[Stage, str]] = {}
        """Stages that other drivers train, each with a relative clause that says who."""
        self._look_at = 0.0
        self._ready: dict[Hashable, deque[Stage]] = {}
        self._waiting: dict[str, list[Stage]] = {}
        self._num_waiting = 0
        self._packs: dict[str, StagePack] = {}
        self._running: set[str] = set()
        self._resting: list[tuple[float, Stage]] = []
        # Stages that were killed for memory again and again wait until no other pack takes memory.
        self._last: list[Stage] = []
        self._short_of_memory: set[str] = set()
        self._machine_faults: Counter[str] = Counter()
        self._code_faults: Counter[str] = Counter()
        self._deaths = Deaths()
        self._failed: dict[str, str] = {}
        self.storage_fault: str | None = None
        self._todo = todo = {stage.key: stage for stage in progress.todo}
        parents = {stage.parent.key for stage in todo.values() if stage.parent is not None}
        # The stages that others wait for come first, so that at the end no worker waits for them.
        for stage in sorted(todo.values(), key=lambda stage: stage.key not in parents):
            if stage.parent is not None and stage.parent.key in todo:
                self._waiting.setdefault(stage.parent.key, []).append(stage)
                self._num_waiting += 1
            else:
                self._make_ready(stage)

    @property
    def is_finished(self) -> bool:
        """True once nothing is left to train and nothing runs that might fail and return, or once nothing can be stored
        any more."""
        self._wake()
        left = (self._ready, self._waiting, self._resting, self._last, self._running, self._elsewhere)
        return self.storage_fault is not None or not any(left)

    @property
    def names_running(self) -> frozenset[str]:
        """The names of the packs that a worker has, or will have."""
        return frozenset(self._running)

    @property
    def num_resting(self) -> int:
        """The number of stages that rest after a fault."""
        return len(self._resting) + len(self._last)

    def next_pack(self, name: str) -> StagePack | None:
        """The next pack; None while every stage that is left waits for its parent or another driver, or rests after a
        fault."""
        self._wake()
        while self._ready and self.storage_fault is None:
            group, stages = next(iter(self._ready.items()))
            limit = 1 if group == stages[0].key else self._limits.get(stages[0].shape, 1)
            size = self._size_of_next_pack(limit, len(stages))
            pack = tuple(itertools.islice(stages, size))
            if not all(stage.key in self._claimed for stage in pack):
                self._claim(size * self._num_workers)
                continue
            for _ in pack:
                stages.popleft()
            if not stages:
                del self._ready[group]
            self._packs[name] = pack
            self._running.add(name)
            return pack
        return None

    @property
    def waiting_line(self) -> str | None:
        """A line about the stages that other drivers train, if there are any, and nothing is ready beside them."""
        if self._ready or not self._elsewhere:
            return None
        reasons = Counter(reason for _, reason in self._elsewhere.values())
        parts = [f"{count} stage{'s' if count > 1 else ''} {reason}" for reason, count in reasons.items()]
        return f"waiting for {', '.join(parts)}"

    def _claim(self, most: int) -> None:
        """Claims the ready stages of the next packs, one for each worker at a time; those that other drivers train are
        ready no more."""
        ready = itertools.chain.from_iterable(self._ready.values())
        try:
            claimed, refused = self._claims.claim((s.key for s in ready if s.key not in self._claimed), most)
        except OSError as error:
            self.storage_fault = one_line(error)
            return
        self._claimed |= set(claimed)
        if refused:
            self._elsewhere |= {key: (self._todo[key], reason) for key, reason in refused.items()}
            self._look_at = time.monotonic() + LOOK_S * random.uniform(0.5, 1.5)
            groups = {group: deque(s for s in stages if s.key not in refused) for group, stages in self._ready.items()}
            self._ready = {group: stages for group, stages in groups.items() if stages}

    def _size_of_next_pack(self, limit: int, num_ready: int) -> int:
        """The limit, or less once the stages that are left have to be divided among the workers; chosen so that the
        ready stages of a group make packs of about the same size."""
        num_left = sum(map(len, self._ready.values())) + self._num_waiting
        most = min(limit, max(-(-num_left // self._num_workers), limit // LEAST_SHARE))
        num_packs = -(-num_ready // most)
        return -(-num_ready // num_packs)

    def _make_ready(self, stage: Stage) -> None:
        """Makes a stage ready. One that has raised an error, or whose worker died again and again, is trained alone, so
        that it harms no other one; after the first death, only with stages that had one too."""
        deaths = self._deaths.of(stage.key)
        if self._code_faults[stage.key] or deaths >= DEATHS_TOGETHER:
            group: Hashable = stage.key
        else:
            group = (stage.shape, deaths) if deaths else stage.shape
        self._ready.setdefault(group, deque()).append(stage)

    def _wake(self) -> None:
        now = time.monotonic()
        due = [stage for due_at, stage in self._resting if due_at <= now]
        self._resting = [(due_at, stage) for due_at, stage in self._resting if due_at > now]
        if self._elsewhere and self._look_at <= now:
            due += [stage for stage, _ in self._elsewhere.values()]
            self._elsewhere = {}
        for stage in due:
            if stage.key in self._short_of_memory and self._deaths.of(stage.key) >= DEATHS_TOGETHER:
                self._last.append(stage)
            else:
                self._make_ready(stage)
        if self._last and not (self._ready or self._running):
            self._make_ready(self._last.pop(0))

    def pack_named(self, name: str) -> StagePack:
        """The stages of a pack that was taken."""
        return self._packs.get(name, ())

    def stage_advanced(self, key: str) -> None:
        """A stage has reached a checkpoint, so earlier machine faults no longer count."""
        del self._machine_faults[key]
        self._deaths.forget(key)
        self._short_of_memory.discard(key)

    def stage_done(self, key: str) -> None:
        """A stage's result is known: the stages that start from it are ready, unless it diverged."""
        children = self._waiting_for(key)
        if self._progress.results[key].diverged_step is None:
            for stage in children:
                self._make_ready(stage)

    def pack_ended(self, name: str) -> None:
        """A worker no longer has the pack. After an error, a call of `pack_failed` follows."""
        self._running.discard(name)
        keys = {stage.key for stage in self.pack_named(name)}
        self._claimed -= keys
        self._claims.release(keys)
        for stage in self.pack_named(name):
            if self._is_pruned(stage):
                self._waiting_for(stage.key)

    def pack_failed(self, name: str, fault: Fault) -> list[str]:
        """Decides what happens to the unfinished stages of a pack; returns lines about them."""
        unfinished = [
            stage
            for stage in self.pack_named(name)
            if stage.key not in self._progress.results and not self._is_pruned(stage)
        ]
        if fault.kind == "machine":
            return self._lost_worker(unfinished, fault)
        if fault.kind == "code":
            return [self._raised_error(stage, fault) for stage in unfinished]
        if unfinished:
            self.storage_fault = fault.line
        return []

    def _raised_error(self, stage: Stage, fault: Fault) -> str:
        """Tries a stage again, or gives it up after its last try; returns a line that says so."""
        self._code_faults[stage.key] += 1
        tries = self._code_faults[stage.key]
        if tries <= CODE_RETRIES:
            self._make_ready(stage)
        else:
            self._give_up(stage, fault.line)
        return f"failed, try {tries} of {CODE_RETRIES + 1}: stage {stage.key}: {fault.line}"

    def _lost_worker(self, stages: Sequence[Stage], fault: Fault) -> list[str]:
        """Lets stages rest before they are tried again, or gives up those that killed their worker too often; returns
        lines that say so."""
        keys = {stage.key for stage in stages}
        if fault.worker_died:
            self._deaths.add(keys)
        if fault.for_memory:
            self._short_of_memory |= keys
        lines, resting = [], dict[float, list[Stage]]()
        for stage in stages:
            if fault.worker_died and self._deaths.of(stage.key) >= MOST_DEATHS:
                reason = f"killed its worker {self._deaths.of(stage.key)} times: {fault.line}"
                self._give_up(stage, reason)
                lines.append(f"failed: stage {stage.key} {reason}")
            else:
                self._machine_faults[stage.key] += 1
                resting.setdefault(pause_s(self._machine_faults[stage.key]), []).append(stage)
        for pause, together in resting.items():
            self._resting += [(time.monotonic() + pause, stage) for stage in together]
            lines.append(f"lost a worker, trying again in {pause:.0f} s: {named(together)}: {fault.line}")
        return lines

    def _give_up(self, stage: Stage, reason: str) -> None:
        self._failed[stage.key] = reason
        self._waiting_for(stage.key)  # nothing can start from it

    def _waiting_for(self, key: str) -> Sequence[Stage]:
        """The stages that wait for another one, and wait no longer."""
        stages = self._waiting.pop(key, ())
        self._num_waiting -= len(stages)
        return stages

    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of every stage that the queue began with, by key."""
        return {key: self._outcome(stage) for key, stage in self._todo.items()}

    def _outcome(self, stage: Stage) -> Outcome:
        if stage.key in self._progress.results:
            return Outcome("done")
        if stage.key in self._failed:
            return Outcome("failed", self._failed[stage.key])
        return Outcome("pruned" if self._is_pruned(stage) else "left")

    def _is_pruned(self, stage: Stage) -> bool:
        return all(trial.key in self._progress.pruned for trial in self._progress.plan.trials_of[stage.key])
