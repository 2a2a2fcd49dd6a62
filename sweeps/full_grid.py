"""All four axes together: data fraction, number of heads, patch size and init scheme.

python sweeps/full_grid.py                                     # digits, about 5 minutes on two cores
python sweeps/full_grid.py --patch-size 4 --num-heads 4 9 16   # 16 heads do not fit a grid of 2x2 patches: left out
python sweeps/full_grid.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Impossible combinations (more heads than there are offsets between patches) are left out, and listed.

Expected on digits: 60 trials, 12 combinations left out (16 heads on 2×2 patches).
"""

from cvit.engine.declaration import Preset, Sweep, tuned
from cvit.engine.main import main
from cvit.recipes import (
    FULL_TWIN,
    PAPER_TRAINING,
    PAPER_VIT,
    SMALL_TRAINING,
    SMALL_VIT,
    SMALLEST_SMOKE,
    WIDE_HEADS,
)

SCHEMES = ("random", "conv_structured", "two_phase")

SWEEP = Sweep(
    name="full_grid",
    question="How do data, heads, patches and initialisation together decide the accuracy?",
    drop_invalid=True,
    presets={
        "laptop": Preset(
            description="the default: digits, 60 trials, about 5 minutes on 2 cores",
            grid={
                "data_fraction": (0.05, 0.2),
                "patch_size": (2, 4),
                "num_heads": (4, 9, 16),
                "init_scheme": SCHEMES,
            },
            seeds=2,
            settings=SMALL_VIT | WIDE_HEADS | FULL_TWIN | SMALL_TRAINING | {"learning_rate": 2e-3},
            scheme_settings=tuned("digits_wide_heads", SCHEMES),
        ),
        "smoke": Preset(
            description="does it run? 12 tiny trials",
            grid={
                "data_fraction": (0.01, 0.05),
                "patch_size": (2, 4),
                "num_heads": (9, 16),
                "init_scheme": ("random", "two_phase"),
            },
            seeds=1,
            settings=SMALL_VIT | WIDE_HEADS | FULL_TWIN | SMALLEST_SMOKE,
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12",
            grid={
                "data_fraction": (0.01, 0.05, 0.2),
                "patch_size": (2, 4, 8),
                "num_heads": (4, 9, 16),
                "init_scheme": SCHEMES,
            },
            seeds=3,
            settings=PAPER_VIT | FULL_TWIN | PAPER_TRAINING,
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
