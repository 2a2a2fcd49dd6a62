"""Says how many trials of a question's default grid the storage lacks, and which command trains them: `make demo` ends
with it."""

import os
import sys

from cvit.data.datasets import describe
from cvit.engine.loading import load_sweeps
from cvit.engine.planning.rounds import first_round
from cvit.engine.scripts import sweep_scripts
from cvit.engine.terminal.cli import parse
from cvit.storage import Storage


def missing_line(name: str) -> str:
    """One line about the question with this name, for a script that declares one sweep of trainings."""
    path = sweep_scripts()[name]
    (sweep,) = load_sweeps(path)
    request = parse(sweep, [])
    assert request is not None  # only help and version give none
    info = describe(request.dataset, request.data_dir, download=False)
    progress = first_round(sweep, request, info, Storage.open(request.storage))
    num_trials = len(progress.plan.trials)
    if progress.num_done == num_trials:
        return f"All {num_trials} trials of {sweep.name} are done."
    python, script = os.path.relpath(sys.executable), os.path.relpath(path)
    return (
        f"{progress.num_done} of the {num_trials} trials of {sweep.name} are done; "
        f"`{python} {script}` trains the {num_trials - progress.num_done} that are missing."
    )
