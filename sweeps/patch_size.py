"""What does the size of the patches do: to accuracy, to speed, to the heads a convolution needs? (paper, section 3)

python sweeps/patch_size.py                                             # digits, about 4 minutes on two cores
python sweeps/patch_size.py --data-fraction 0.05 --patch-size 1 2
python sweeps/patch_size.py --preset photographs --dataset cifar10 --data-dir ../shared/data
"""

from sweeps.engine.declaration import Preset, Sweep
from sweeps.engine.main import main

SCHEMES = ("random", "two_phase")
SMALL_VIT = {"embed_dim": 48, "depth": 4, "num_heads": 9, "head_dim": 8, "mlp_ratio": 2.0, "batch_size": 32}
# The best of six settings on validation images for both schemes, at patches of one pixel, where it matters most
# (docs/LOG.md).
BEST = {"position_encoding": "relative+absolute", "learning_rate": 4e-3}

SWEEP = Sweep(
    name="patch_size",
    question="How do accuracy, speed and the heads that a convolution needs depend on the size of the patches?",
    presets={
        "laptop": Preset(
            description="the default: digits, 36 trials, about 4 minutes on 2 cores",
            grid={"data_fraction": (0.05, 0.2), "patch_size": (1, 2, 4), "init_scheme": SCHEMES},
            seeds=3,
            settings=SMALL_VIT | BEST | {"epochs": 10, "min_steps": 300, "validation_fraction": 0.2},
        ),
        "smoke": Preset(
            description="does it run? 8 tiny trials",
            grid={"data_fraction": (0.01, 0.05), "patch_size": (2, 4), "init_scheme": SCHEMES},
            seeds=1,
            # On 32x32 photographs patches of 2 make 256 tokens: few images and few steps keep that quick.
            settings=SMALL_VIT
            | {"depth": 1, "batch_size": 16, "epochs": 0, "min_steps": 20}
            | {"evaluations": 2, "max_validation_images": 200, "max_test_images": 200},
        ),
        "photographs": Preset(
            description="CIFAR-sized photographs on a CPU: 8 trials, one seed",
            grid={"data_fraction": (0.02, 0.05), "patch_size": (4, 8), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT
            | {"embed_dim": 96, "head_dim": 12, "batch_size": 64, "epochs": 12, "min_steps": 400}
            | {"max_validation_images": 1000, "position_encoding": "relative+absolute"},
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"data_fraction": (0.01, 0.05, 0.2), "patch_size": (2, 4, 8), "init_scheme": SCHEMES},
            seeds=5,
            settings={"embed_dim": 384, "depth": 12, "num_heads": 9, "head_dim": 32, "batch_size": 128}
            | {"epochs": 100, "min_steps": 4000, "learning_rate": 5e-4, "label_smoothing": 0.1}
            | {"precision": "bfloat16", "evaluations": 20},
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
