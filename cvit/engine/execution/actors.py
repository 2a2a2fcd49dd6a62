"""Ray's actors, in which workers live: an actor manager for Tune that survives every error of one of them, and where
an actor runs.

Both reach into modules of Ray that are not public: Tune offers no other way. `tests/engine/test_ray_faults.py` runs
them against a real Ray.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import ray
from ray._private import state, worker
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.tune.execution import tune_controller

from cvit.engine.execution.lean_ray import replaced
from cvit.engine.execution.watch import Watch

STARTING = "starting"
"""The kind of work of a worker that starts, or takes its next pack."""


@dataclass(frozen=True)
class Place:
    """The node and the process of an actor.

    Attributes:
        node_id: Ray's name of the node; empty if the actor has none yet.
        pid: the process; 0 if there is none yet.
    """

    node_id: str
    ip: str
    pid: int

    def __str__(self) -> str:
        return f"pid {self.pid or 'unknown'} on node {self.ip or 'unknown'}"


def place_of(actor_id: str | None) -> Place:
    """The place of an actor, also of one that is dead or has not started yet."""
    info = state.actors(actor_id) if actor_id is not None else {}
    address = info.get("Address", {})
    return Place(address.get("NodeID", ""), address.get("IPAddress", ""), info.get("Pid", 0))


def nodes_with(resources: Mapping[str, float]) -> set[str]:
    """The ids of the living nodes that have these resources, by Ray's names, whether they are free or not."""
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in resources.items())
    }


def id_of(actor: Any) -> str:
    """The id of an actor, by its handle."""
    return actor._actor_id.hex()


class _PatientActorManager(RayActorManager):
    """Tune's manager of actors, with two differences.

    An error of an actor that is neither the actor's death nor an exception of its code, such as OutOfMemoryError, ends
    this actor, not the whole run. And starts of workers are watched.

    Attributes:
        starts: follows them. It belongs to the class, because Tune calls the constructor again.
    """

    starts: ClassVar[Watch]

    def _try_start_actors(self, max_actors: int | None = None) -> int:
        before = set(self._live_actors_to_ray_actors_resources)
        count = super()._try_start_actors(max_actors)
        for tracked, (actor, _) in self._live_actors_to_ray_actors_resources.items():
            if tracked not in before:
                self.starts.started(id_of(actor), STARTING, actor)
        return count

    def _cleanup_actor(self, tracked_actor: TrackedActor) -> None:
        self.starts.ended(id_of(self._actor_of(tracked_actor)))
        super()._cleanup_actor(tracked_actor)

    def schedule_actor_task(self, tracked_actor: TrackedActor, method_name: str, *args: Any, **options: Any) -> Any:
        actor = self._actor_of(tracked_actor)
        if method_name == "reset" and actor is not None:
            self.starts.started(id_of(actor), STARTING, actor)
        return super().schedule_actor_task(tracked_actor, method_name, *args, **options)

    def _actor_task_failed(self, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        actor = self._actor_of(tracked_actor_task._tracked_actor)
        if not isinstance(exception, (RayActorError, RayTaskError)):
            if actor is not None:
                ray.kill(actor)
            died = ActorDiedError()
            died.__cause__ = exception
            exception = died
        super()._actor_task_failed(tracked_actor_task, exception)

    def _actor_of(self, tracked_actor: TrackedActor) -> Any:
        return self._live_actors_to_ray_actors_resources.get(tracked_actor, (None,))[0]


@contextlib.contextmanager
def patient_tune(starts: Watch) -> Iterator[None]:
    """Has Tune manage its actors by the class above, and keeps Ray from printing pages about each of them that dies:
    the display has a line for it.

    Args:
        starts: follows the starts of workers, by the id of their actor.
    """

    class WatchedActorManager(_PatientActorManager):
        pass

    WatchedActorManager.starts = starts
    with (
        replaced(tune_controller, "RayActorManager", WatchedActorManager),
        replaced(worker, "print_to_stdstream", _print_nothing),
    ):
        yield


def _print_nothing(*_: Any, **__: Any) -> None:
    pass
