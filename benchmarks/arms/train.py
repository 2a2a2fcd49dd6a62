"""A training script as one runs it in a loop of the shell, an arm of throughput.py with benchmarks/arms/bash_loop.py.

It trains one trial as benchmarks/arms/plain_training.py does, and appends its measurements to a file, a line of JSON
each.

python benchmarks/arms/train.py CONFIG.json        # writes CONFIG.jsonl
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.arms.plain_training import at_once, place_of_each, train_one
from cvit.data.datasets import describe, load
from cvit.vocabulary import TEST_ACCURACY


def main(file: Path) -> None:
    """Trains the trial that the file describes."""
    config = json.loads(file.read_text())
    info = describe(config["dataset"], config["data_dir"], download=False, image_size=config["image_size"])
    with open(file.with_suffix(".jsonl"), "w") as lines:

        def report(figures: dict[str, float]) -> None:
            print(json.dumps(figures), file=lines, flush=True)

        place = place_of_each(config["device"], at_once(config["device"]))
        report({TEST_ACCURACY: train_one(config["trial"], load(info), place, report)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
