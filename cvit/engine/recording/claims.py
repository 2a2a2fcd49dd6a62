"""Claims let one driver at a time train a stage that sweeps in a storage share. They stand in the driver's lease file.

A driver writes its claims, then reads those of the others. Of two that claim a stage at once, at least one sees the
other and withdraws; both look again later. A claim ends with the training, or with the driver.
"""

import time
from collections.abc import Iterable
from typing import Any

from cvit.engine.recording.backoff import is_refused
from cvit.engine.recording.drivers import Watch, decode_driver, drivers_in
from cvit.engine.recording.lease import Lease
from cvit.engine.recording.process_identity import is_dead, this_process
from cvit.errors import one_line
from cvit.storage import Storage

ORPHANS_S = 5.0
"""The workers of a driver that was killed may train for this long before Ray ends them."""


class Claims:
    """The stages that this driver trains, and those that others train."""

    def __init__(self, storage: Storage, lease: Lease) -> None:
        self._storage, self._lease = storage, lease
        self._watch = Watch()
        self._dead_since: dict[str, float] = {}
        self._has_company = True

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its searcher, and this object with it, into a snapshot that is never read.
        return {}

    def claim(self, keys: Iterable[str], most: int) -> tuple[list[str], dict[str, str]]:
        """Claims the first stages that no other driver trains.

        Args:
            keys: of stages, in the order in which they are wanted.
            most: the largest number of stages to claim.

        Returns:
            The stages that it got, and those that it was refused, each with the reason as a relative clause.

        Raises:
            OSError: the storage refuses to be written.
            LeaseLost: another driver runs this sweep.
        """
        claimed, refused, keys = list[str](), dict[str, str](), iter(keys)
        try:
            self._lease.check()
            held = self._held_by_others() if self._has_company else {}
            while len(claimed) < most and (key := next(keys, None)) is not None:
                if key in held:
                    refused[key] = held[key]
                else:
                    claimed.append(key)
            if claimed:
                self._lease.claims |= set(claimed)
                self._lease.write()
                held = self._held_by_others()
        except OSError as error:
            self.release(claimed)
            if is_refused(error):
                raise
            wanted = [*claimed, *refused, *keys]
            return [], dict.fromkeys(wanted, f"that wait for the storage ({one_line(error)})")
        late = {key: held[key] for key in claimed if key in held}
        if late:
            self.release(late)
            self._lease.write()
        return [key for key in claimed if key not in late], refused | late

    def release(self, keys: Iterable[str]) -> None:
        """Gives claims up; others learn it when the lease is written next."""
        self._lease.claims -= set(keys)

    def _held_by_others(self) -> dict[str, str]:
        """The stages that other living drivers claim, each with a relative clause that says who."""
        held: dict[str, str] = {}
        self._has_company = False
        for sweep, token, data in drivers_in(self._storage, self._lease.token):
            driver = decode_driver(token, data)
            self._watch.look(token, data)
            if driver.process == this_process() or not driver.claims:
                continue  # another sweep of this script; a driver that trains nothing now
            is_over = self._watch.is_dead(driver)
            if is_over and is_dead(driver.process):
                is_over = time.monotonic() - self._dead_since.setdefault(token, time.monotonic()) > ORPHANS_S
            if not is_over:
                self._has_company = True
                held |= dict.fromkeys(driver.claims, f"that sweep {sweep} trains ({driver.name})")
        return held
