"""This arm of throughput.py, not meant to be run by hand, runs the grid by a loop of the shell.

`xargs -P` starts `python train.py` once per trial, one process per core (on a GPU, four); a process reads its
configuration from a file and appends its measurements to another (benchmarks/arms/train.py). No Ray, no MLflow.

python benchmarks/arms/bash_loop.py [options of sweeps/low_data.py]
"""

import json
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.arms.grid import planned
from benchmarks.arms.plain_training import at_once
from benchmarks.common import ROOT, chosen_device
from cvit.vocabulary import TEST_ACCURACY

LOOP = 'printf "%s\\0" "$1"/*.json | xargs -0 -P "$2" -n 1 "$3" "$4"'


def accuracies_in(folder: str) -> list[float]:
    """Returns the test accuracies of all trials that ended."""
    last = [json.loads(file.read_text().splitlines()[-1]) for file in Path(folder).glob("*.jsonl")]
    return [figures[TEST_ACCURACY] for figures in last if TEST_ACCURACY in figures]


def main(options: list[str]) -> None:
    """Runs the grid that the sweep's options describe."""
    progress, _, request = planned(options)
    device = chosen_device(request.device).type
    folder = Path(request.storage)
    folder.mkdir(parents=True, exist_ok=True)
    of_all = {
        "dataset": request.dataset,
        "data_dir": request.data_dir,
        "image_size": request.image_size,
        "device": device,
    }
    for number, trial in enumerate(progress.plan.trials):
        (folder / f"{number:05}.json").write_text(json.dumps({**of_all, "trial": dict(trial.params)}))
    script = str(ROOT / "benchmarks/arms/train.py")
    done = subprocess.run(["bash", "-c", LOOP, "loop", folder, str(at_once(device)), sys.executable, script])
    sys.exit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
