"""Which init scheme is best when each is tuned with the same budget? An Optuna search per scheme, then fresh seeds.

python sweeps/tuned.py                                          # digits
python sweeps/tuned.py --search-trials 48 --seeds 10
python sweeps/tuned.py --init-scheme random mimetic impulse local conv_structured joint two_phase convolution resnet
python sweeps/tuned.py --preset photographs --dataset cifar10 --data-dir ../shared/data
python sweeps/tuned.py --preset smoke --dataset cifar10 --data-dir ../shared/data

Every scheme gets the same number of trials, and varies the parameters below that have an influence on it: two_phase
has more of them than random, so the same number of trials covers less of its space, while more of them can be put
right. The first trial of a scheme has the settings of its preset, so no search ends below what was known. The finalists
are trained again on other seeds, and the mean of the final accuracies on validation images decides; test images play no
part in it. The answer is the test accuracy of the winners, trained on seeds that neither search nor final has seen.

The winners stand in results/tuned.json, which other sweeps take:

python sweeps/low_data.py --settings-from results/tuned.json

Such a file in place of one below sweeps/settings/ makes its winners the presets' settings.

Expected on digits (5 % of the data, docs/RESULTS.md): two_phase − random is +1.8 points, [−0.9, +4.5], on fresh seeds.
"""

from cvit.engine.declaration import Choice, Preset, Range, Search, Sweep, tuned
from cvit.engine.main import main
from cvit.recipes import PAPER_TRAINING, PAPER_VIT, PHOTO_TRAINING, PHOTO_VIT, SMALL_TRAINING, SMALL_VIT, SMOKE

SCHEMES = ("random", "conv_structured", "two_phase")
RATES = Range(low=3e-4, high=2e-2, log=True)
# Shares of the steps for the convolution phase are not searched: with equal shares, the trials of a round train in one
# pack.
SPACE = {
    "learning_rate": RATES,
    "weight_decay": Range(low=1e-3, high=0.3, log=True),
    "warmup_fraction": Range(low=0.0, high=0.2),
    "position_encoding": Choice(values=("relative", "relative+absolute")),
    "attention_sharpness": Range(low=1.0, high=10.0, log=True),
    "position_learning_rate_factor": Range(low=1.0, high=100.0, log=True),
    "decay_towards": Choice(values=("zero", "start")),
    # The rest has an influence on two_phase alone.
    "convolution_learning_rate": RATES,
    "transferred_learning_rate_factor": Range(low=0.03, high=1.0, log=True),
    "optimizer_state": Choice(values=("reset", "carried")),
    "schedule": Choice(values=("per_phase", "joint")),
}

SWEEP = Sweep(
    name="tuned",
    question="Which init scheme is best when each has its own best settings, found with equal budget?",
    presets={
        "laptop": Preset(
            description="the default: digits, 72 trials of the search, 36 of finalists, 15 of winners",
            grid={"init_scheme": SCHEMES},
            seeds=5,
            settings=SMALL_VIT | SMALL_TRAINING | {"data_fraction": 0.05, "learning_rate": 2e-3},
            scheme_settings=tuned("digits", SCHEMES),
            search=Search(space=SPACE, trials=24, round_size=8, finalists=4, finalist_seeds=3),
        ),
        "smoke": Preset(
            description="does it run? 8 tiny trials of the search, 8 of finalists and 2 of winners",
            grid={"init_scheme": ("random", "two_phase")},
            seeds=1,
            settings=SMALL_VIT | SMOKE | {"data_fraction": 0.02},
            scheme_settings=tuned("digits", ("random", "two_phase")),
            search=Search(space=SPACE, trials=4, round_size=2, finalists=2, finalist_seeds=2),
        ),
        "photographs": Preset(
            description="CIFAR on a CPU: 42 trials of 4,000 steps, about 5 hours on 2 cores (an estimate)",
            grid={"init_scheme": ("random", "two_phase")},
            seeds=3,
            settings=PHOTO_VIT | PHOTO_TRAINING | {"data_fraction": 0.05},
            scheme_settings=tuned("photographs", ("random", "two_phase")),
            search=Search(space=SPACE, trials=12, round_size=6, finalists=3, finalist_seeds=2),
        ),
        "reference": Preset(
            description="CIFAR at the paper's scale, meant for GPUs: ViT of depth 12, 9 heads of 32",
            grid={"init_scheme": SCHEMES},
            seeds=5,
            settings=PAPER_VIT | PAPER_TRAINING | {"data_fraction": 0.05},
            search=Search(space=SPACE, trials=32, round_size=16, finalists=4, finalist_seeds=3),
        ),
    },
)

if __name__ == "__main__":
    main(SWEEP)
