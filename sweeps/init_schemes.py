"""The paper's method beside its rivals: six ways to start the same transformer, over data fractions.

python sweeps/init_schemes.py                                       # digits, about 3 minutes on two cores
python sweeps/init_schemes.py --init-scheme random mimetic two_phase --data-fraction 0.05 --seeds 10
python sweeps/init_schemes.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Reference rows: `convolution`, the convolutional twin alone, and `resnet`, a small residual network of about as many
parameters. Every scheme is at its own best position encoding and learning rate on validation images (docs/LOG.md).
"""

from sweeps.engine.declaration import Preset, Sweep
from sweeps.engine.main import main

SCHEMES = ("random", "mimetic", "impulse", "local", "conv_structured", "two_phase", "convolution", "resnet")
ABSOLUTE = {"position_encoding": "relative+absolute"}
SMALL_VIT = {"embed_dim": 48, "num_heads": 9, "head_dim": 8, "mlp_ratio": 2.0, "batch_size": 32}

SWEEP = Sweep(
    name="init_schemes",
    question="How does two-phase training compare with other ways to start a transformer, and with convolution itself?",
    presets={
        "laptop": Preset(
            description="the default: digits, 72 trials, about 3 minutes on 2 cores",
            grid={"data_fraction": (0.02, 0.05, 0.2), "init_scheme": SCHEMES},
            seeds=3,
            settings=SMALL_VIT
            | {"depth": 4, "epochs": 10, "min_steps": 300, "learning_rate": 2e-3, "validation_fraction": 0.2},
            scheme_settings={
                "random": ABSOLUTE,
                "mimetic": ABSOLUTE | {"learning_rate": 4e-3},
                "impulse": ABSOLUTE,
                "local": ABSOLUTE | {"learning_rate": 4e-3},
                "conv_structured": ABSOLUTE | {"learning_rate": 4e-3},
                "convolution": {"learning_rate": 4e-3},
            },
        ),
        "smoke": Preset(
            description="does it run? 8 tiny trials",
            grid={"data_fraction": (0.02,), "init_scheme": SCHEMES},
            seeds=1,
            settings=SMALL_VIT
            | {
                "depth": 1,
                "epochs": 1,
                "min_steps": 40,
                "evaluations": 2,
                "max_validation_images": 500,
                "max_test_images": 500,
            },
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"data_fraction": (0.01, 0.02, 0.05, 0.1, 0.2, 1.0), "init_scheme": SCHEMES},
            seeds=5,
            settings={"embed_dim": 384, "depth": 12, "num_heads": 9, "head_dim": 32, "batch_size": 128}
            | {"epochs": 100, "min_steps": 4000, "learning_rate": 5e-4, "label_smoothing": 0.1}
            | {"precision": "bfloat16", "evaluations": 20},
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
