"""Does training first as a convolution win where data are few? (paper, section 5: the low-data regime)

python sweeps/low_data.py                                              # digits, 90 s on two cores
python sweeps/low_data.py --dataset cifar10 --data-dir ../shared/data  # CIFAR-10 from Parquet files
python sweeps/low_data.py --preset reference --dataset cifar10         # ViT of depth 12, meant for GPUs
"""

from sweeps.engine.declaration import Preset, Sweep
from sweeps.engine.main import main

SCHEMES = ("random", "conv_structured", "two_phase")
SMALL_VIT = {"embed_dim": 48, "depth": 4, "num_heads": 9, "head_dim": 8, "mlp_ratio": 2.0}

SWEEP = Sweep(
    name="low_data",
    question="Do two phases beat random initialisation where data are few, and by how much?",
    # Settings of single schemes are their own best on validation images, found with equal budget (docs/LOG.md).
    presets={
        "laptop": Preset(
            description="the default: digits, 45 trials, 90 s on 2 cores",
            grid={"data_fraction": (0.02, 0.05, 0.2), "init_scheme": SCHEMES},
            seeds=5,
            settings=SMALL_VIT
            | {"batch_size": 32, "epochs": 10, "min_steps": 300, "learning_rate": 2e-3, "validation_fraction": 0.2},
            scheme_settings={
                "random": {"position_encoding": "relative+absolute"},
                "conv_structured": {"position_encoding": "relative+absolute", "learning_rate": 4e-3},
            },
        ),
        "smoke": Preset(
            description="does it run? 6 tiny trials, under a minute on 2 cores (CIFAR-10: just over)",
            grid={"data_fraction": (0.01, 0.05), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT
            | {
                "depth": 1,
                "batch_size": 32,
                "epochs": 1,
                "min_steps": 40,
                "evaluations": 2,
                "max_validation_images": 500,
                "max_test_images": 500,
            },
        ),
        "photographs": Preset(
            description="CIFAR-sized photographs on a CPU: 18 trials, under an hour on 2 cores",
            grid={"data_fraction": (0.01, 0.05, 0.1), "init_scheme": ("random", "two_phase")},
            seeds=3,
            settings={
                "embed_dim": 96,
                "depth": 4,
                "num_heads": 9,
                "head_dim": 12,
                "mlp_ratio": 2.0,
                "batch_size": 64,
                "epochs": 12,
                "min_steps": 400,
                "max_validation_images": 1000,
            },
            scheme_settings={
                "random": {"position_encoding": "relative+absolute", "learning_rate": 2e-3},
                "two_phase": {"position_encoding": "relative", "learning_rate": 1e-3},
            },
        ),
        "reference": Preset(
            description="CIFAR on a GPU: 100 trials of a ViT of depth 12 and width 192, 9 heads of 32",
            grid={"data_fraction": (0.01, 0.02, 0.05, 0.1, 0.2), "init_scheme": (*SCHEMES, "mimetic")},
            seeds=5,
            settings={
                "embed_dim": 192,
                "depth": 12,
                "num_heads": 9,
                "head_dim": 32,
                "batch_size": 128,
                "epochs": 100,
                "min_steps": 4000,
                "learning_rate": 5e-4,
                "label_smoothing": 0.1,
                "precision": "bfloat16",
                "evaluations": 20,
            },
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
