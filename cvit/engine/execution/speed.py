"""The speed of a machine, remembered in the storage: the next session expects what the last one measured.

STORAGE/speed/<machine>-<device>-<ray or local>.json
"""

import contextlib
import math
import platform
import re
from dataclasses import asdict, dataclass
from typing import Self

from cvit.results import read_record
from cvit.storage import Storage, encode_record, with_format
from cvit.vocabulary import SPEED_FOLDER

START_UP_S = 7.0
"""The time from the start to the first step, with Ray: 5 to 6.5 s on 2 idle cores (docs/PERFORMANCE.md), or more where
the libraries are read for the first time."""
START_IN_PROCESS_S = 3.0
"""The same without Ray."""
DOUBT_S = 20.0
"""So many seconds at the pace that is expected by default count beside what was measured, since a tiny preset says
little about a larger one."""


@dataclass(frozen=True)
class Speed:
    """The speed of a machine's workers, in seconds that it would take if it was idle.

    Attributes:
        trained_s: seconds for which workers trained in the session that measured them.
        expected_s: seconds that had been expected for the same stages.
        start_up_s: seconds from the start to the first step.
        with_ray: True if Ray was started, or attached to.
    """

    trained_s: float = 0.0
    expected_s: float = 0.0
    start_up_s: float = START_UP_S
    with_ray: bool = True

    @classmethod
    def recall(cls, storage: Storage, device: str, with_ray: bool) -> Self:
        """The speed that a session before has remembered; by default that of a server of 2023."""
        try:
            record = read_record(storage, _path(device, with_ray)) or {}
            seconds = {name: float(record[name]) for name in ("trained_s", "expected_s", "start_up_s")}
        except (OSError, ValueError, TypeError, KeyError):
            seconds = {} if with_ray else {"start_up_s": START_IN_PROCESS_S}
        if not all(0 <= value < math.inf for value in seconds.values()):
            seconds = {}
        return cls(**seconds, with_ray=with_ray)

    def remember(self, storage: Storage, device: str) -> None:
        """Writes the speed for the next session. If it cannot be written, nothing is lost but an estimate."""
        with contextlib.suppress(OSError):
            storage.write(_path(device, self.with_ray), encode_record(with_format(asdict(self))))

    @property
    def pace(self) -> float:
        """The seconds that a stage takes, divided by those expected."""
        return (self.trained_s + DOUBT_S) / (self.expected_s + DOUBT_S)

    @property
    def is_remembered(self) -> bool:
        return self.expected_s > 0


def _path(device: str, with_ray: bool) -> str:
    """The path of the speed of this machine."""
    machine = re.sub(r"[^\w.-]", "_", platform.node()) or "unknown"
    return f"{SPEED_FOLDER}/{machine}-{device}-{'ray' if with_ray else 'local'}.json"
