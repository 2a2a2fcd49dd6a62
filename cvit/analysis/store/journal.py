"""Reads the journals of a storage into frames."""

from collections.abc import Sequence

from cvit import vocabulary as names
from cvit.analysis.store.frames import CurvesOf, Frames, LoadError, Raw, no_curves
from cvit.errors import one_line
from cvit.records import read_segment
from cvit.redaction import redacted
from cvit.storage import Storage, StorageError, later_version


def load_journal(storage: Storage, sweep: str | Sequence[str] | None = None, curves_of: CurvesOf = no_curves) -> Frames:
    """Reads the journals of a storage, or those of one sweep or some. Records of unknown types are skipped.

    Raises:
        LoadError: the storage cannot be read, or has no journal or no study, or a later version wrote it.
    """
    raw, source = Raw(curves_of), redacted(f"storage {storage.url!r}")
    try:
        sweeps = [sweep] if isinstance(sweep, str) else sweep or storage.names(names.JOURNAL_FOLDER)
        for name in sweeps:
            folder = f"{names.JOURNAL_FOLDER}/{name}"
            for segment in storage.names(folder):
                _add(raw, name, storage, f"{folder}/{segment}")
    except (OSError, StorageError) as error:
        raise LoadError(f"{source} cannot be read: {redacted(one_line(error))}") from error
    if not sweeps:
        raise LoadError(f"{source} has no journal: no folder {names.JOURNAL_FOLDER!r} with sweeps in it")
    return raw.frames(source)


def _add(raw: Raw, sweep: str, storage: Storage, path: str) -> None:
    """Adds the records of a file of a journal."""
    for record in read_segment(storage, path):
        try:
            raw.add(sweep, record)
        except (LoadError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise later_version(path, f"a record that cannot be used: {one_line(error)}") from error
