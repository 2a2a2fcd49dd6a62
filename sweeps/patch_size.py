"""What does the size of the patches do to accuracy, to speed, to the heads a convolution needs? (paper, section 3)

python sweeps/patch_size.py                                             # digits, about 4 minutes on two cores
python sweeps/patch_size.py --data-fraction 0.05 --patch-size 1 2
python sweeps/patch_size.py --preset photographs --dataset cifar10 --data-dir ../shared/data

Expected on digits (5 seeds, docs/RESULTS.md): two phases win 4 to 5 points on single pixels, and 2 or less, which is
not resolved, on larger patches. These are faster and need fewer heads.
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
    SMALLEST_SMOKE,
)

SCHEMES = ("random", "two_phase")

SWEEP = Sweep(
    name="patch_size",
    question="How do accuracy, speed and the heads that a convolution needs depend on the size of the patches?",
    presets={
        "laptop": Preset(
            description="the default: digits, 36 trials, about 4 minutes on 2 cores",
            grid={"data_fraction": (0.05, 0.2), "patch_size": (1, 2, 4), "init_scheme": SCHEMES},
            seeds=3,
            settings=SMALL_VIT | SMALL_TRAINING,
            # The best on validation images at patches of one pixel, where settings matter most.
            scheme_settings=tuned("digits_pixels", SCHEMES),
        ),
        "smoke": Preset(
            description="does it run? 8 tiny trials",
            grid={"data_fraction": (0.01, 0.05), "patch_size": (2, 4), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT | SMALLEST_SMOKE,
        ),
        "photographs": Preset(
            description="CIFAR on a CPU: 12 trials of 4,000 steps, about an hour on 2 cores (an estimate)",
            grid={"data_fraction": (0.05,), "patch_size": (4, 8), "init_scheme": SCHEMES},
            seeds=3,
            settings=PHOTO_VIT | PHOTO_TRAINING,
            scheme_settings=tuned("photographs", SCHEMES),
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"data_fraction": (0.01, 0.05, 0.2), "patch_size": (2, 4, 8), "init_scheme": SCHEMES},
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING,
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
