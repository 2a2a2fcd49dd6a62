"""The paper's method beside its rivals: seven ways to train the same transformer, over data fractions.

python sweeps/init_schemes.py                                       # digits, about 3 minutes on two cores
python sweeps/init_schemes.py --init-scheme random mimetic two_phase --data-fraction 0.05 --seeds 10
python sweeps/init_schemes.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Reference rows: `convolution`, the convolutional twin alone, and `resnet`, a small residual network of about as many
parameters. Every scheme runs at the settings that are best for it on validation images (sweeps/settings/).

Expected on digits (5 seeds, docs/RESULTS.md): tuned alike, the schemes hardly differ. `joint` is ahead of the other
transformers (+4.0, +2.1 and +2.1 points over random at 2, 5 and 20 %), `convolution` and `resnet` of all.
"""

from cvit.engine.declaration import Preset, Sweep, tuned
from cvit.engine.main import main
from cvit.recipes import PAPER_TRAINING, PAPER_VIT, PHOTO_TRAINING, PHOTO_VIT, SMALL_TRAINING, SMALL_VIT, SMOKE

SCHEMES = ("random", "mimetic", "impulse", "local", "conv_structured", "joint", "two_phase", "convolution", "resnet")

SWEEP = Sweep(
    name="init_schemes",
    question="How does two-phase training compare with other ways to start a transformer, and with convolution itself?",
    presets={
        "laptop": Preset(
            description="the default: digits, 81 trials, about 3 minutes on 2 cores",
            grid={"data_fraction": (0.02, 0.05, 0.2), "init_scheme": SCHEMES},
            seeds=3,
            settings=SMALL_VIT | SMALL_TRAINING | {"learning_rate": 2e-3},
            scheme_settings=tuned("digits", SCHEMES),
        ),
        "smoke": Preset(
            description="does it run? 9 tiny trials",
            grid={"data_fraction": (0.02,), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT | SMOKE,
        ),
        "photographs": Preset(
            description="CIFAR on a CPU: 27 trials of 4,000 steps, about 3 hours on 2 cores (an estimate)",
            grid={"data_fraction": (0.05,), "init_scheme": SCHEMES},
            seeds=3,
            settings=PHOTO_VIT | PHOTO_TRAINING,
            scheme_settings=tuned("photographs", SCHEMES),
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"data_fraction": (0.01, 0.02, 0.05, 0.1, 0.2, 1.0), "init_scheme": SCHEMES},
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING,
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
