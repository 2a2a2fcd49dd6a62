"""Does training first as a convolution win where data are few? (paper, section 5: the low-data regime)

python sweeps/low_data.py                                              # digits, at equal steps and at equal FLOPs
python sweeps/low_data.py --budget-unit steps                          # at equal steps: 45 trials, 90 s on two cores
python sweeps/low_data.py --dataset cifar10 --data-dir ../shared/data  # CIFAR-10 from Parquet files
python sweeps/low_data.py --preset photographs --dataset cifar10 --data-dir ../shared/data
python sweeps/low_data.py --preset photographs --dataset cifar100 --data-dir ../shared/data --data-fraction 0.1
python sweeps/low_data.py --preset reference --dataset cifar10         # ViT of depth 12, meant for GPUs

Expected (docs/RESULTS.md): on digits two_phase − random is +2.5 points of test accuracy at 2 % of the data, +2.1 at 5
% and +1.3 at 20 % (10 seeds). On CIFAR-10, preset `photographs` with bfloat16 on a GPU, it is +5.1 at 5 % and +0.8 at
10 % (5 seeds), and the twin alone and `joint` are ahead of both.
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

SCHEMES = ("random", "conv_structured", "two_phase")
RIVALS = ("joint", "convolution", "resnet")

SWEEP = Sweep(
    name="low_data",
    question="Do two phases beat random initialisation where data are few, and by how much?",
    # Settings of single schemes are the best for them on validation images, found with equal budget.
    presets={
        "laptop": Preset(
            description="the default: digits, 90 trials; with --budget-unit steps 45 trials, 90 s on 2 cores",
            grid={"data_fraction": (0.02, 0.05, 0.2), "init_scheme": SCHEMES, "budget_unit": ("steps", "flops")},
            seeds=5,
            settings=SMALL_VIT | SMALL_TRAINING | {"learning_rate": 2e-3},
            scheme_settings=tuned("digits", SCHEMES),
        ),
        "smoke": Preset(
            description="does it run? 6 tiny trials, under a minute on 2 cores (CIFAR-10: just over)",
            grid={"data_fraction": (0.01, 0.05), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT | SMOKE,
        ),
        "photographs": Preset(
            description="CIFAR on a CPU: 36 trials of 4,000 steps, about 4 hours on 2 cores (an estimate)",
            grid={"data_fraction": (0.05, 0.1), "init_scheme": (*SCHEMES, *RIVALS), "budget_unit": ("steps",)},
            seeds=3,
            settings=PHOTO_VIT | PHOTO_TRAINING,
            scheme_settings=tuned("photographs", (*SCHEMES, *RIVALS)),
        ),
        "reference": Preset(
            description="CIFAR on a GPU: 100 trials of a ViT of depth 12 and width 192, 9 heads of 32",
            grid={
                "data_fraction": (0.01, 0.02, 0.05, 0.1, 0.2),
                "init_scheme": (*SCHEMES, "mimetic"),
                "budget_unit": ("steps",),
            },
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING | {"embed_dim": 192},
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
