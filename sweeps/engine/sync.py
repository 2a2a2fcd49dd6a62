"""Copies the journals of a storage to MLflow by hand, as after an outage that outlived the sweep.

python -m sweeps.engine.sync --storage s3://bucket/folder --tracking-uri http://127.0.0.1:5000
"""

import os
import sys
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from cvit import vocabulary as v
from cvit.config import ConfigError
from cvit.errors import one_line
from cvit.redaction import Redacting
from cvit.storage import Storage, StorageError
from cvit.vocabulary import DEFAULT_TRACKING_URI
from sweeps.engine.recording.journal import Journal, Record
from sweeps.engine.recording.lease import lease
from sweeps.engine.terminal.cli import TRACKING_URI_VARIABLE
from sweeps.engine.terminal.preflight import check_reachable, check_tracking_uri
from sweeps.engine.tracking.tracker import Tracker

EXIT_NOT_COPIED = 1
EXIT_BAD_INPUT = 2
TIMEOUT_S = 600.0
"""For each study."""


def sync(
    *,
    storage: Annotated[str, Parameter(help="Folder or URL that holds the journals.")] = "storage",
    tracking_uri: Annotated[str | None, Parameter(help=f"MLflow store (or set {TRACKING_URI_VARIABLE}).")] = None,
    sweep: Annotated[str | None, Parameter(help="One sweep; without it, all that have a journal.")] = None,
) -> int:
    """Copies what the journals hold and MLflow lacks; copying again adds nothing. Trials that are not finished are
    ended as KILLED: the sweep's own command takes them up again."""
    uri = tracking_uri or os.environ.get(TRACKING_URI_VARIABLE) or DEFAULT_TRACKING_URI
    check_tracking_uri(uri)
    check_reachable(uri)
    opened = Storage.open(storage)
    try:
        names = opened.names(v.JOURNAL_FOLDER)
    except OSError as error:
        raise StorageError(f"storage {storage!r} cannot be read: {one_line(error)}") from error
    if not names:
        raise StorageError(f"storage {storage!r} has no journal")
    if sweep is not None and sweep not in names:
        raise ConfigError(f"sweep {sweep!r} has no journal in storage {storage!r}: one of {', '.join(names)}")
    copied = [_sync_sweep(opened, name, uri) for name in ([sweep] if sweep is not None else names)]
    return 0 if all(copied) else EXIT_NOT_COPIED


def _sync_sweep(storage: Storage, sweep: str, uri: str) -> bool:
    # A living driver copies its journal itself.
    with lease(storage, sweep, print):
        records = Journal(storage, sweep).records
        studies: dict[str, set[str]] = {r["study_key"]: set() for r in records if r["type"] == v.RECORD_STUDY}
        for record in records:
            if record["type"] == v.RECORD_TRIAL and record["study_key"] in studies:
                studies[record["study_key"]].add(record["trial_key"])
        status = {r["trial_key"]: r["status"] for r in records if r["type"] == v.RECORD_END}
        errors = [_sync_study(uri, sweep, key, trials, status, records) for key, trials in studies.items()]
    failures = [error for error in errors if error is not None]
    for error in failures:
        print(f"{sweep}: MLflow at {uri} has not got everything: {error}", file=sys.stderr)
    if not failures:
        num_trials = sum(map(len, studies.values()))
        print(f"{sweep}: {num_trials} trials, {len(status)} of them ended, are in MLflow at {uri}")
    return not failures


def _sync_study(
    uri: str, sweep: str, study: str, trials: set[str], status: dict[str, str], records: list[Record]
) -> str | None:
    """The error that kept a study from being copied, if any."""
    tracker = Tracker(uri, sweep, {study, *trials}, records)
    has_failed = any(status.get(trial) == v.STATUS_FAILED for trial in trials)
    is_complete = all(trial in status for trial in trials)
    outcome = ("FAILED" if has_failed else "FINISHED") if is_complete else "KILLED"
    return None if tracker.close(outcome, TIMEOUT_S) else tracker.error or f"not done within {TIMEOUT_S:.0f} s"


def main() -> None:
    """The command; bad input ends it with one line and exit code 2. Nothing printed shows the passwords of URLs."""
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    app = App(name="python -m sweeps.engine.sync", version_flags=[], result_action="return_value")
    app.default(sync)
    try:
        sys.exit(app(exit_on_error=False, print_error=False))
    except (CycloptsError, ConfigError, StorageError) as error:
        print(f"sync: error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
