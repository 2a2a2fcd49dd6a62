"""The exit codes of the engine's commands."""

FINISHED = 0
FAILED_TRIALS = 1
NOT_COPIED = 1
"""Of `sweeps.engine.sync`: the tracking server has not got everything."""
BAD_INPUT = 2
INTERRUPTED = 130
