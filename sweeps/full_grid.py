"""All four axes together: data fraction, number of heads, patch size and init scheme.

python sweeps/full_grid.py                                     # digits, about 5 minutes on two cores
python sweeps/full_grid.py --patch-size 4 --num-heads 4 9 16   # 16 heads do not fit a grid of 2x2 patches: left out
python sweeps/full_grid.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Combinations that cannot be (more heads than there are offsets between patches) are left out, and listed.
"""

from sweeps.engine.declaration import Preset, Sweep
from sweeps.engine.main import main

SCHEMES = ("random", "conv_structured", "two_phase")
# A twin of full rank is the same convolution whatever the number of heads, and is trained once for all of them.
SMALL_VIT = {"embed_dim": 48, "depth": 4, "head_dim": 16, "mlp_ratio": 2.0, "convolution_form": "full"}
OWN = {
    "random": {"position_encoding": "relative+absolute", "learning_rate": 4e-3},
    "conv_structured": {"position_encoding": "relative+absolute", "learning_rate": 4e-3},
}

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
            settings=SMALL_VIT
            | {"validation_fraction": 0.2, "batch_size": 32, "epochs": 10, "min_steps": 300, "learning_rate": 2e-3},
            scheme_settings=OWN,
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
            settings=SMALL_VIT
            | {"depth": 1, "batch_size": 16, "epochs": 0, "min_steps": 20}
            | {"evaluations": 2, "max_validation_images": 200, "max_test_images": 200},
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
            settings=SMALL_VIT
            | {"embed_dim": 384, "depth": 12, "head_dim": 32, "mlp_ratio": 4.0, "batch_size": 128}
            | {"epochs": 100, "min_steps": 4000, "learning_rate": 5e-4, "label_smoothing": 0.1}
            | {"precision": "bfloat16", "evaluations": 20},
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
