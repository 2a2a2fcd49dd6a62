"""Does training that starts from a convolution need a warm-up? (paper, section 5: stability)

python sweeps/no_warmup.py                                                # digits, an estimated 6 minutes on 2 cores
python sweeps/no_warmup.py --learning-rate 0.001 0.016 --warmup-fraction 0 0.1
python sweeps/no_warmup.py --transferred-learning-rate-factor 0.03 0.3    # further variants of two_phase
python sweeps/no_warmup.py --gradient-clip-norm 1 --preset smoke          # clipping hides much of the instability
python sweeps/no_warmup.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Per trial: final accuracy; whether it diverged and at which step; the largest gradient norm and its step; loss spikes (a
step whose loss exceeds the median of the 20 before it by more than half of the trial's first loss; consecutive steps
count once); the loss after the first 1 % of the steps; steps to reach an accuracy. Gradients are not clipped. Per
scheme: the best learning rate, and the range of rates around it, with and without warm-up.

Two phases are trained in four ways: with the learning rate of what the convolution phase has trained as it is and at a
tenth (`transferred_learning_rate_factor`), and with a schedule per phase or one over both (`schedule`). The tables name
them beside the scheme, such as `two_phase, factor 0.1`. Random initialisation has neither and is trained once.

Expected on digits (5 seeds, docs/RESULTS.md): without warm-up, at a rate of 0.016, two_phase loses 41 points,
random 14 and `factor 0.1` 1.4 [−1.6, 4.4]. With `factor 0.1, schedule joint` no rate from 0.001 to 0.064 needs a
warm-up.
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

SCHEMES = ("random", "two_phase")
WARMUP = (0.0, 0.1)
# Axes that mean something for two phases only. The plan has random initialisation once for each of their values; these
# trials share one training, and tables show it once.
VARIANTS = {"transferred_learning_rate_factor": (1.0, 0.1), "schedule": ("per_phase", "joint")}
NO_VARIANTS = {name: values[:1] for name, values in VARIANTS.items()}
UNCLIPPED = {"gradient_clip_norm": 0.0}
# The question is whether the attention phase needs a warm-up. So the convolution phase has a schedule of its own, and
# all learning rates and warm-ups share that phase.
TWO_PHASE = {"convolution_learning_rate": 2e-3, "convolution_warmup_fraction": 0.1}
FIXED = frozenset(TWO_PHASE)
ON_DIGITS, ON_PHOTOGRAPHS = (
    {**best, "two_phase": {**best.get("two_phase", {}), **TWO_PHASE}}
    for best in (tuned("digits", SCHEMES), tuned("photographs", SCHEMES))
)

SWEEP = Sweep(
    name="no_warmup",
    question="Without warm-up, over what range of learning rates does each scheme train, and what does it lose?",
    presets={
        "laptop": Preset(
            description="the default: digits, 240 trials, about 6 minutes on 2 cores (an estimate)",
            grid={
                "warmup_fraction": WARMUP,
                "learning_rate": (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.256),
                **VARIANTS,
                "init_scheme": SCHEMES,
            },
            seeds=3,
            settings=SMALL_VIT | SMALL_TRAINING | UNCLIPPED | {"data_fraction": 0.05},
            scheme_settings=ON_DIGITS,
            fixed=FIXED,
        ),
        "smoke": Preset(
            description="does it run? 8 tiny trials",
            grid={"warmup_fraction": WARMUP, "learning_rate": (1e-3, 1.6e-2), **NO_VARIANTS, "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT | SMOKE | UNCLIPPED | {"data_fraction": 0.02, "evaluations": 4},
            scheme_settings=ON_DIGITS,
            fixed=FIXED,
        ),
        "photographs": Preset(
            description="CIFAR: 120 trials of 2,500 steps, 1,000 of them in the second phase; meant for GPUs",
            grid={
                "warmup_fraction": WARMUP,
                "learning_rate": (5e-4, 2e-3, 8e-3, 3.2e-2),
                **VARIANTS,
                "init_scheme": SCHEMES,
            },
            seeds=3,
            settings=PHOTO_VIT
            | PHOTO_TRAINING
            | UNCLIPPED
            | {"data_fraction": 0.05, "min_steps": 2500, "convolution_fraction": 0.6},
            scheme_settings=ON_PHOTOGRAPHS,
            fixed=FIXED,
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={
                "warmup_fraction": WARMUP,
                "learning_rate": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
                **VARIANTS,
                "init_scheme": SCHEMES,
            },
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING | UNCLIPPED | {"data_fraction": 0.1},
            scheme_settings={"two_phase": TWO_PHASE | {"convolution_learning_rate": 5e-4}},
            fixed=FIXED,
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
