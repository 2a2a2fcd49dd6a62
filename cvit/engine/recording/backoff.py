"""Backing off: which errors are worth a retry, and after what pause."""

import errno

from cvit.errors import Refused

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def is_refused(error: OSError) -> bool:
    """True if retrying cannot help (disk full, read-only, permission denied, no such bucket); False for a broken
    connection."""
    return isinstance(error, Refused) or error.errno in _REFUSED


def pause_s(faults_in_a_row: int) -> float:
    """The pause after so many faults in a row: 1, 2, 4, … 60 s."""
    return min(FIRST_PAUSE_S * 2.0 ** min(faults_in_a_row - 1, 30), LONGEST_PAUSE_S)
