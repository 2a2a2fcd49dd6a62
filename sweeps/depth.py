"""How many heads a layer does a convolution need in L layers of attention, and how many does gradient descent need?

python sweeps/depth.py                                          # 9, 16 and 27 causal taps in 1 to 4 layers
python sweeps/depth.py --kernel-size 32 --depth 5 --num-heads 1 --seeds 10
python sweeps/depth.py --dimensions 2 --kernel-size 3 --padding same --fit-image-size 6 --depth 2 --num-heads 2

Layers with skip connections are a sum of (H + 1)^L products, so no layers with (H + 1)^L below the number of a kernel's
maps are exact; wide enough layers at that frontier are, for causal kernels (docs/THEOREMS.md).

Expected: the frontier is met at all 12 places (9 maps: 1 × 8, 2 × 2, 3 × 2, 4 × 1 heads; 16: 15, 3, 2, 1; 27: 26, 5, 2,
2), and with one head a layer fewer the error stays above its bound. 32 taps are met by one head in each of five layers,
in 9 of 10 restarts; a 3×3 kernel on images by 2 + 2, in 3 of 20 (`--seeds 20`).
"""

from cvit.engine.declaration import Preset, Sweep
from cvit.engine.main import main

DEPTH = Sweep(
    name="depth",
    question="How many heads a layer does a convolution need in so many layers of attention?",
    task="depth",
    presets={
        "laptop": Preset(
            description="the default: 360 fits, about 8 minutes on two cores that others use too",
            grid={
                "kernel_size": (9, 16, 27),
                "depth": (1, 2, 3, 4),
                "num_heads": (1, 2, 3, 4, 5, 7, 8, 14, 15, 25, 26),
            },
            seeds=5,
            settings={},
        ),
        "smoke": Preset(
            description="does it run? 16 fits, 15 seconds",
            grid={"kernel_size": (9,), "depth": (1, 2), "num_heads": (1, 2, 7, 8)},
            seeds=2,
            settings={},
        ),
        "reference": Preset(
            description="more kernels, layers and restarts; hours on two cores",
            grid={
                "kernel_size": (9, 16, 27, 32),
                "depth": (1, 2, 3, 4, 5),
                "num_heads": (*range(1, 11), 14, 15, 25, 26, 30, 31),
            },
            seeds=20,
            settings={},
        ),
    },
    drop_invalid=True,
)

if __name__ == "__main__":
    main(DEPTH)
