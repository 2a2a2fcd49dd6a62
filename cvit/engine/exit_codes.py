"""The exit codes of the engine's commands."""

FINISHED = 0
FAILED_TRIALS = 1
NOT_COPIED = 1
"""The exit code of `cvit.engine.sync` if the tracking store is still incomplete."""
BAD_INPUT = 2
LEASE_LOST = 3
"""The exit code of a driver whose sweep another one has taken over meanwhile."""
INTERRUPTED = 130
