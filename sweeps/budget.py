"""From how many optimiser steps on does the second phase pay? (paper, section 5: two phases against one)

python sweeps/budget.py                                                 # digits, an estimated 5 minutes on 2 cores
python sweeps/budget.py --min-steps 300 2400 --data-fraction 0.2
python sweeps/budget.py --preset photographs --dataset cifar10 --data-dir ../shared/data
python sweeps/budget.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Each budget is a training of its own with a whole schedule, not a point on the way of a longer one; `epochs` is 0, so
that `min_steps` is the number of steps. A two_phase trial divides them between its phases; `convolution` is its twin,
trained for all of them.

Settings of the schemes are the winners of sweeps/tuned.py (`sweeps/settings/`), found at one budget and kept at all.
Expected on digits (5 seeds, docs/RESULTS.md): two_phase overtakes random at about 230 steps, and the twin at none.

The time of `photographs` is an estimate: 0.31 s of one core for a step of attention, 0.14 s for one of the twin.
"""

from cvit.engine.declaration import Preset, Sweep, tuned
from cvit.engine.main import main
from cvit.recipes import (
    PAPER_TRAINING,
    PAPER_VIT,
    PHOTO_TRAINING,
    PHOTO_VIT,
    SMALL_TRAINING,
    SMALL_VIT,
    SMOKE,
)

SCHEMES = ("random", "two_phase", "convolution")
BY_STEPS = {"epochs": 0}

SWEEP = Sweep(
    name="budget",
    question="From how many optimiser steps on do two phases beat random initialisation, and the twin alone?",
    presets={
        "laptop": Preset(
            description="the default: digits, 75 trials, about 5 minutes on 2 cores (an estimate)",
            grid={"min_steps": (75, 150, 300, 600, 1200), "init_scheme": SCHEMES},
            seeds=5,
            settings=SMALL_VIT | SMALL_TRAINING | BY_STEPS | {"learning_rate": 2e-3, "data_fraction": 0.05},
            scheme_settings=tuned("digits", SCHEMES),
        ),
        "smoke": Preset(
            description="does it run? 6 tiny trials",
            grid={"min_steps": (20, 40), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT | SMOKE | BY_STEPS | {"data_fraction": 0.05},
        ),
        "photographs": Preset(
            description="CIFAR-sized photographs on a CPU: 45 trials, an estimated 3 to 4 hours on 2 cores",
            grid={"min_steps": (400, 800, 1600, 3200, 6400), "init_scheme": SCHEMES},
            seeds=3,
            settings=PHOTO_VIT | PHOTO_TRAINING | BY_STEPS | {"learning_rate": 2e-3, "data_fraction": 0.05},
            scheme_settings=tuned("photographs", SCHEMES),
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"min_steps": (2000, 4000, 8000, 16000, 32000), "init_scheme": SCHEMES},
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING | BY_STEPS | {"data_fraction": 0.1},
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
