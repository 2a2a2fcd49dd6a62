"""How many of the blocks have to be attention? (hybrids of convolution and attention, which the paper leaves open)

python sweeps/hybrids.py                                                # digits, an estimated 5 minutes on two cores
python sweeps/hybrids.py --attention-blocks 1 4 --data-fraction 0.02
python sweeps/hybrids.py --depth 6 --attention-blocks 1 3 6
python sweeps/hybrids.py --preset photographs --dataset cifar10 --data-dir ../shared/data

A hybrid has attention in its last blocks and convolutions in those before them. The transfer is exact block by block,
so `two_phase` may release any number of them, and one convolution phase serves all numbers. `random` is the same hybrid
from random weights in one phase. The twin alone and a small ResNet are references; they do not depend on the number.

Settings of the schemes are the winners of sweeps/tuned.py (`sweeps/settings/`), found with attention in all blocks.
Expected on digits (5 seeds): the number of blocks makes no difference that is resolved: two_phase with one block less
two_phase with four is +1.0, -1.0 and -0.2 points at 2, 5 and 20 % of the images. The twin's means are 0.1 to 2.6 points
above those of two_phase, a ResNet's 3 to 7.
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
REFERENCES = ("convolution", "resnet")

SWEEP = Sweep(
    name="hybrids",
    question="How many of the last blocks have to be attention, and how much data does each of them ask for?",
    presets={
        "laptop": Preset(
            description="the default: digits, 240 trials of 165 trainings, about 5 minutes on 2 cores (an estimate)",
            grid={
                "data_fraction": (0.02, 0.05, 0.2),
                "attention_blocks": (1, 2, 3, 4),
                "init_scheme": (*SCHEMES, *REFERENCES),
            },
            seeds=5,
            settings=SMALL_VIT | SMALL_TRAINING | {"learning_rate": 2e-3},
            scheme_settings=tuned("digits", (*SCHEMES, *REFERENCES)),
        ),
        "smoke": Preset(
            description="does it run? 16 tiny trials",
            grid={
                "data_fraction": (0.01, 0.05),
                "attention_blocks": (1, 2),
                "init_scheme": (*SCHEMES, *REFERENCES),
            },
            seeds=1,
            settings=SMALL_VIT | SMOKE | {"depth": 2},
        ),
        "photographs": Preset(
            description="CIFAR on a CPU: 96 trials of 4,000 steps, about 6 hours on 2 cores (an estimate)",
            grid={
                "data_fraction": (0.05, 0.1),
                "attention_blocks": (1, 2, 3, 4),
                "init_scheme": (*SCHEMES, *REFERENCES),
            },
            seeds=3,
            settings=PHOTO_VIT | PHOTO_TRAINING,
            scheme_settings=tuned("photographs", (*SCHEMES, *REFERENCES)),
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={
                "data_fraction": (0.01, 0.05, 0.2),
                "attention_blocks": (1, 2, 4, 8, 12),
                "init_scheme": (*SCHEMES, *REFERENCES),
            },
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING,
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
