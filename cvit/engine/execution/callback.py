"""The callback of Tune: it takes the workers' reports and deaths to the recorder, and ends workers that hang."""

import contextlib
import dataclasses
import sys
import time
from typing import Any

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError
from ray.tune.experiment import Trial as TuneTrial

from cvit.engine.execution.actors import Place, id_of, nodes_with, place_of
from cvit.engine.execution.faults import NODE_DIED, Fault, TrainingError, fault_of_trial
from cvit.engine.execution.nodes import MOST_DEATHS, Nodes
from cvit.engine.execution.queue import StageQueue, named
from cvit.engine.execution.recorder import Recorder
from cvit.engine.execution.site import Site
from cvit.engine.execution.watch import Silence, Watch
from cvit.engine.execution.worker import BUSY_S, LOAD, NODE, REPORTS, WAITED_S
from cvit.engine.wording import duration

LOOK_INTERVAL_S = 1.0


class TuneCallback(tune.Callback):
    """Passes what happens to workers to those who have to know it; a pack's name is the id of its Tune trial.

    Attributes:
        starts: follows workers that start, by the id of their actor.
    """

    def __init__(self, recorder: Recorder, queue: StageQueue, site: Site, nodes: Nodes) -> None:
        self._recorder, self._queue, self._timing, self._nodes = recorder, queue, site.timing, nodes
        self._resources = site.workers.resources
        self.starts, self._packs = Watch(), Watch()
        self._actors: dict[str, Any] = {}
        self._have_reported: set[str] = set()
        self._hung: set[str | None] = set()
        self._looked_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks into snapshots that are never read

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_INTERVAL_S:
            return
        self._looked_at = now
        num_unstarted = len(self._queue.names_running - self._actors.keys())
        self._timing.capacity = max(self._timing.capacity, len(self._actors) + self.starts.num_works)
        self._timing.looked(self._queue.num_resting + num_unstarted)
        for silence in self.starts.look():
            self._act_on(silence, "its start")
        for silence in self._packs.look():
            self._timing.silent(silence.name)
            self._act_on(silence, named(self._queue.pack_named(silence.name)))

    def _act_on(self, silence: Silence, work: str) -> None:
        """Names a worker that does not move, or ends it."""
        actor_id = id_of(silence.worker)
        self._hung.add(actor_id)
        if silence.is_over:
            ray.kill(silence.worker)
        else:
            limit = f"after {duration(silence.most_s)} it is killed"
            line = f"{place_of(actor_id)} has not moved for {duration(silence.seconds)} in {work}; {limit}"
            self._recorder.noticed(line)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name, actor = trial.trial_id, trial.temporary_state.ray_actor
        actor_id = id_of(actor)
        self.starts.moved(actor_id)
        self.starts.ended(actor_id)
        self._actors[name] = actor
        self._packs.started(name, self._queue.pack_named(name)[0].shape, actor)
        self._timing.started(name)
        self._recorder.started(name)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        if REPORTS in result:
            name = trial.trial_id
            actor_id = id_of(self._actors[name])
            self._have_reported.add(actor_id)
            self._hung.discard(actor_id)
            self._nodes.reported(result.get(NODE, ""))
            self._packs.moved(name)
            self._timing.add(result[BUSY_S], result[WAITED_S])
            self._timing.reported(name)
            self._recorder.reported(name, result[REPORTS])
            self._recorder.measured(result.get(LOAD))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._forget(trial.trial_id)
        self._timing.ended(trial.trial_id)
        self._recorder.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        # Tune calls this while it handles the exception. The files to which it writes it could be anybody's.
        error = sys.exception()
        fault, name = fault_of_trial(error, str(error)), trial.trial_id
        silent_s = self._packs.silent_s(name)
        actor = self._forget(name)
        actor_id = id_of(actor) if actor is not None else getattr(error, "actor_id", None)
        place = place_of(actor_id)
        if isinstance(error, ActorUnavailableError) and actor is not None:
            ray.kill(actor)  # it may come back, while another worker trains its stages
        # Ray itself gives up a worker that hangs if its process does not even answer.
        if actor_id in self._hung and fault.kind == "machine" and NODE_DIED not in fault.line:
            time_s = f"for {duration(silent_s)}" if actor is not None else "at its start"
            fault = Fault("machine", f"its worker hung {time_s}, and was killed ({place})", worker_died=True)
        self._hung.discard(actor_id)
        is_node_s = not isinstance(error, OutOfMemoryError) and (fault.worker_died or fault.kind == "code")
        is_start = actor is None and is_node_s and place.node_id != ""
        self._timing.failed(name)
        # No stage is the cause if a worker dies while it starts.
        self._recorder.failed(name, dataclasses.replace(fault, worker_died=fault.worker_died and not is_start))
        if is_start:
            self._judged(self._nodes.start_failed(place.node_id), place, fault)
        elif is_node_s and fault.worker_died and actor_id not in self._have_reported:
            self._judged(self._nodes.first_pack_failed(place.node_id), place, fault)

    def _judged(self, is_bad: bool, place: Place, fault: Fault) -> None:
        """Says that a node is avoided from now on. Raises TrainingError if none is left."""
        if not is_bad:
            return
        if self._nodes.are_all_avoided(nodes_with(self._resources)):
            raise TrainingError(f"on every node workers die at their start, the last time by: {fault.line}")
        line = f"{MOST_DEATHS} workers in a row died at their start, so it is avoided"
        self._recorder.noticed(f"node {place.ip} ({place.node_id[:8]}): {line}: {fault.line}")

    def end_workers(self) -> None:
        """Ends every worker at once, with what it has not stored yet."""
        for actor in self._actors.values():
            with contextlib.suppress(RayError, RuntimeError, ValueError):  # Ray itself may be gone
                ray.kill(actor)

    def abandon_all(self, reason: str) -> None:
        """Gives up every pack that is handed out, and ends its worker."""
        for name in self._queue.names_running:
            actor = self._forget(name)
            if actor is not None:
                with contextlib.suppress(RayError, RuntimeError, ValueError):  # Ray itself may be gone
                    ray.kill(actor)
            self._queue.pack_ended(name)
            self._timing.failed(name)
            self._recorder.failed(name, Fault("machine", reason))

    def _forget(self, name: str) -> Any:
        """The actor that has the pack, and has it no longer; None if it has not begun."""
        self._packs.ended(name)
        return self._actors.pop(name, None)
