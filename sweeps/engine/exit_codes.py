"""The exit codes of the engine's commands."""

FINISHED = 0
FAILED_TRIALS = 1
NOT_COPIED = 1
"""The exit code of `sweeps.engine.sync` if the tracking store is still incomplete."""
BAD_INPUT = 2
INTERRUPTED = 130
