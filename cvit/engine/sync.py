"""Copies the journals of a storage to a tracking store by hand, for example after an outage that outlived the sweep.

python -m cvit.engine.sync --storage s3://bucket/folder --tracking-uri http://127.0.0.1:5000
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from cvit import vocabulary as v
from cvit.engine import exit_codes
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.lease import LeaseLost, lease
from cvit.engine.signals import stop_on_sigterm
from cvit.engine.terminal.answer import answer_of
from cvit.engine.terminal.preflight import check_reachable, check_tracking_uri
from cvit.engine.terminal.surroundings import surroundings
from cvit.engine.tracking.backend import FAILED, FINISHED, KILLED, backend_for, check_store
from cvit.engine.tracking.tracker import Tracker
from cvit.errors import one_line
from cvit.parameters import ConfigError
from cvit.records import EndRecord, StudyRecord, TrialRecord
from cvit.redaction import Redacting
from cvit.storage import Storage, StorageError, without_waiting
from cvit.streams import make_streams_last
from cvit.tracking import chosen_uri

TIMEOUT_S = 600.0
"""The longest time to copy one study."""


def sync(
    *,
    storage: Annotated[str, Parameter(help="Folder or URL that holds the journals.")] = "storage",
    tracking_uri: Annotated[str | None, Parameter(help=f"MLflow store (or set {v.TRACKING_URI_VARIABLE}).")] = None,
    sweep: Annotated[str | None, Parameter(help="One sweep; without it, all that have a journal.")] = None,
    upgrade_store: Annotated[bool, Parameter(help="Change a store of an older MLflow.", negative="")] = False,
) -> int:
    """Copies to the store what it lacks of the journals; copying again adds nothing. Unfinished trials are ended as
    KILLED: the sweep's own command continues them."""
    uri = chosen_uri(tracking_uri)
    check_tracking_uri(uri)
    check_reachable(uri)
    if uri == v.NO_TRACKING:
        raise ConfigError(f"tracking URI {uri!r}: there is no store to copy to")
    check_store(uri, upgrade_store)
    opened = Storage.open(storage)
    opened.check_readable()
    try:
        names = opened.names(v.JOURNAL_FOLDER)
    except OSError as error:
        raise StorageError(f"storage {storage!r} cannot be read: {one_line(error)}") from error
    if not names:
        raise StorageError(f"storage {storage!r} has no journal")
    if sweep is not None and sweep not in names:
        raise ConfigError(f"sweep {sweep!r} has no journal in storage {storage!r}: one of {', '.join(names)}")
    are_copied = [_sync_sweep(opened, name, uri) for name in ([sweep] if sweep is not None else names)]
    return exit_codes.FINISHED if all(are_copied) else exit_codes.NOT_COPIED


def _sync_sweep(storage: Storage, sweep: str, uri: str) -> bool:
    """Copies the journal of a sweep; False if the store does not have all of it."""
    # A living driver copies its journal itself.
    with lease(storage, sweep, print) as own_lease:
        records = Journal(storage, sweep).records
        trials_of: dict[str, set[str]] = {r.study_key: set() for r in records if isinstance(r, StudyRecord)}
        for record in records:
            if isinstance(record, TrialRecord) and record.study_key in trials_of:
                trials_of[record.study_key].add(record.trial_key)
        status = {r.trial_key: r.status for r in records if isinstance(r, EndRecord)}
        outcomes = {study: _outcome(trials, status) for study, trials in trials_of.items()}
        errors = []
        for key, outcome in outcomes.items():
            tracker = Tracker(uri, sweep, {key, *trials_of[key]}, records, own_lease.check, surroundings(storage))
            if trials_of[key] & status.keys():
                tracker.attach(key, answer_of(storage, sweep, key))
            is_copied = tracker.close(outcome, TIMEOUT_S)
            errors.append(None if is_copied else tracker.error or f"not done within {TIMEOUT_S:.0f} s")
        own_lease.raise_if_lost()
    failures = [error for error in errors if error is not None]
    place = f"{backend_for(uri).title} at {uri}"
    for error in failures:
        print(f"{sweep}: {place} is incomplete: {error}", file=sys.stderr)
    if not failures:
        num_trials = sum(map(len, trials_of.values()))
        print(f"{sweep}: {num_trials} trials, {len(status)} of them ended, are in {place}")
    return not failures


def _outcome(trials: set[str], status: Mapping[str, str]) -> str:
    """The status of a study's run, from the statuses of its trials; KILLED if one has not ended."""
    if not trials <= status.keys():
        return KILLED
    return FAILED if any(status[trial] == v.STATUS_FAILED for trial in trials) else FINISHED


@without_waiting()
def main(arguments: Sequence[str] | None = None, name: str = "python -m cvit.engine.sync") -> None:
    """Runs the command; bad input ends it with one line and exit code 2. The output never shows passwords of URLs.

    Args:
        arguments: its options; by default those of this process.
        name: the command as a person types it.
    """
    make_streams_last()
    sys.stdout, sys.stderr = Redacting(sys.stdout), Redacting(sys.stderr)
    stop_on_sigterm()
    app = App(name=name, version_flags=[], result_action="return_value")
    app.default(sync)
    try:
        sys.exit(app(arguments, exit_on_error=False, print_error=False))
    except LeaseLost as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(exit_codes.LEASE_LOST)
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)
    except (CycloptsError, ConfigError, StorageError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_codes.BAD_INPUT)


if __name__ == "__main__":
    main()
