"""Which init scheme is best when each is tuned with the same budget? An Optuna search per scheme, then fresh seeds.

python sweeps/tuned.py                                          # digits, about 5 minutes on two cores
python sweeps/tuned.py --search-trials 24 --seeds 10
python sweeps/tuned.py --preset smoke --dataset cifar10 --data-dir ../shared/data

The search covers learning rate, weight decay, warm-up and, if the scheme has one, attention sharpness. It selects by
the final accuracy on validation images; test images play no part in it. The answer is the test accuracy of the winners,
trained on seeds that the search has not seen.

Expected on digits (51 trials at 5 % of the data, docs/RESULTS.md): two_phase − random is +2.4 points, [+1.5, +3.3]; the
winners are no better than the other sweeps' presets, since 12 trials of a search are few.
"""

from cvit.recipes import ABSOLUTE, PAPER_TRAINING, PAPER_VIT, SMALL_TRAINING, SMALL_VIT, SMOKE
from sweeps.engine.declaration import Preset, Range, Search, Sweep
from sweeps.engine.main import main

SCHEMES = ("random", "conv_structured", "two_phase")
SPACE = {
    "learning_rate": Range(low=3e-4, high=2e-2, log=True),
    "weight_decay": Range(low=1e-3, high=0.3, log=True),
    "warmup_fraction": Range(low=0.0, high=0.2),
    "attention_sharpness": Range(low=1.0, high=10.0, log=True),
}
OWN = {"random": ABSOLUTE, "conv_structured": ABSOLUTE}

SWEEP = Sweep(
    name="tuned",
    question="Which init scheme is best when each has its own best settings, found with equal budget?",
    presets={
        "laptop": Preset(
            description="the default: digits, 36 trials of the search, 15 of its winners, about 5 minutes on 2 cores",
            grid={"init_scheme": SCHEMES},
            seeds=5,
            settings=SMALL_VIT | SMALL_TRAINING | {"data_fraction": 0.05},
            scheme_settings=OWN,
            search=Search(space=SPACE, trials=12, round_size=4),
        ),
        "smoke": Preset(
            description="does it run? 8 tiny trials of the search and 2 of its winners",
            grid={"init_scheme": ("random", "two_phase")},
            seeds=1,
            settings=SMALL_VIT | SMOKE | {"data_fraction": 0.02},
            scheme_settings=OWN,
            search=Search(space=SPACE, trials=4, round_size=2),
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"init_scheme": SCHEMES},
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING | {"data_fraction": 0.05},
            search=Search(space=SPACE, trials=32, round_size=8),
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
