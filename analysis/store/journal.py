"""Reads the journals of a storage into frames."""

from analysis.store.frames import CurvesOf, Frames, LoadError, Raw, no_curves
from cvit import vocabulary as names
from cvit.errors import one_line
from cvit.records import read_segment
from cvit.redaction import redacted
from cvit.storage import Storage, StorageError


def load_journal(storage: Storage, sweep: str | None = None, curves_of: CurvesOf = no_curves) -> Frames:
    """Reads the journals of a storage, or the journal of one sweep. Records of unknown types are skipped.

    Raises:
        LoadError: the storage cannot be read, or has no journal or no study, or a later version wrote it.
    """
    raw, source = Raw(curves_of), redacted(f"storage {storage.url!r}")
    try:
        sweeps = [sweep] if sweep is not None else storage.names(names.JOURNAL_FOLDER)
        for name in sweeps:
            folder = f"{names.JOURNAL_FOLDER}/{name}"
            for segment in storage.names(folder):
                for record in read_segment(storage, f"{folder}/{segment}"):
                    raw.add(name, record)
    except (OSError, StorageError) as error:
        raise LoadError(f"{source} cannot be read: {redacted(one_line(error))}") from error
    if not sweeps:
        raise LoadError(f"{source} has no journal: no folder {names.JOURNAL_FOLDER!r} with sweeps in it")
    return raw.frames(source)
