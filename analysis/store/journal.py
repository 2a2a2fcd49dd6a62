"""Reads the journals of a storage into frames."""

from analysis.store.frames import CurvesOf, Frames, LoadError, Raw, no_curves
from cvit import vocabulary as names
from cvit.errors import one_line
from cvit.records import from_json
from cvit.redaction import redacted
from cvit.storage import Storage, StorageError, decode_records


def load_journal(storage: Storage, sweep: str | None = None, curves_of: CurvesOf = no_curves) -> Frames:
    """Reads the journals of a storage, or the journal of one sweep. Records of unknown types are skipped.

    Raises:
        LoadError: the storage cannot be read, or has no journal or no study.
    """
    raw, source = Raw(curves_of), redacted(f"storage {storage.url!r}")
    try:
        sweeps = [sweep] if sweep is not None else storage.names(names.JOURNAL_FOLDER)
        for name in sweeps:
            folder = f"{names.JOURNAL_FOLDER}/{name}"
            for segment in storage.names(folder):
                if segment.endswith(".jsonl"):
                    _read_segment(raw, name, storage.read(f"{folder}/{segment}"))
    except (OSError, StorageError) as error:
        raise LoadError(f"{source} cannot be read: {one_line(error)}") from error
    if not sweeps:
        raise LoadError(f"{source} has no journal: no folder {names.JOURNAL_FOLDER!r} with sweeps in it")
    return raw.frames(source)


def _read_segment(raw: Raw, sweep: str, data: bytes) -> None:
    for values in decode_records(data):
        try:
            record = from_json(values)
        except TypeError as error:
            raise LoadError(f"the journal of {sweep} has a record that cannot be read: {one_line(error)}") from error
        if record is not None:
            raw.add(sweep, record)
