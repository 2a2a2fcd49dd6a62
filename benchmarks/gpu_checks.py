"""The checks of `benchmarks/gpu.py`: each yields (name, figure) as it goes, and prints what a person wants to see."""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cvit.config import TrialConfig
from cvit.data.augment import channel_statistics
from cvit.init.registry import initial_model
from cvit.models.attention import attend
from cvit.models.cuda_attention import _by_torch, attention_on_cuda
from cvit.stages import TrainingStage, stages_of
from cvit.training import compiling
from cvit.training.batches import LabelledImages, PackData, draw_batches
from cvit.training.pack import TABLE_STEPS, TrainingPack
from cvit.training.starts import first_starts

CUDA = torch.device("cuda")
Figures = Iterator[tuple[str, Any]]

REFERENCE: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 3,
    "patch_size": 4,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 9,
    "head_dim": 32,
    "mlp_ratio": 4.0,
    "batch_size": 128,
    "epochs": 0,
    "min_steps": 4000,
    "learning_rate": 5e-4,
    "precision": "bfloat16",
    "evaluations": 20,
    "augmentation": "crop_flip",
    "label_smoothing": 0.1,
}
"""The model and training of the preset `reference` of sweeps/low_data.py; `digits` is that of `laptop`."""
DIGITS: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 1,
    "patch_size": 2,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 9,
    "head_dim": 8,
    "mlp_ratio": 2.0,
    "batch_size": 32,
    "epochs": 0,
    "min_steps": 4000,
    "evaluations": 10,
    "augmentation": "shift",
}
ATTENTION, TWIN = {"init_scheme": "random"}, {"init_scheme": "two_phase"}
ATTENTION_STEPS, TWIN_STEPS, TRIALS = 403_040, 57_600, 100
"""Steps of members in the low-data grid of the preset `reference`."""
NUM_IMAGES = 2000
REPLAYS = 20


# Packs on made-up images


def new_pack(config: dict[str, Any], members: int, **changes: Any) -> TrainingPack:
    """A pack of stages of different seeds, all from the same weights."""
    flat = config | changes
    stages = [stages_of(TrialConfig.from_flat(flat | {"seed": seed}), NUM_IMAGES)[0] for seed in range(members)]
    weights = initial_model(stages[0], None)[0].state_dict()
    return TrainingPack(stages, made_up_data(stages), [weights] * members, CUDA)


def made_up_data(stages: Sequence[TrainingStage]) -> PackData:
    """Random images, of which every member has all."""
    size = stages[0].trial.model
    pixels = torch.randint(256, (NUM_IMAGES, size.in_channels, *size.shape), dtype=torch.uint8, device=CUDA)
    images = LabelledImages(pixels, torch.randint(10, (NUM_IMAGES,), device=CUDA))
    mean, std = (statistic.repeat(len(stages), 1) for statistic in channel_statistics(pixels))
    return PackData(images, (torch.arange(NUM_IMAGES),) * len(stages), images, images, mean, std)


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def gpu_ms(function: Callable[[], object], times: int = 1) -> float:
    """Milliseconds of a call by the device's clock, the mean of so many in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / times


def step_figures(pack: TrainingPack, is_compiled: bool = False) -> dict[str, float]:
    """The time of a captured step: the median of three turns."""
    if is_compiled:
        pack._update, pack._is_compiled = compiling.compile_steps(pack._readings, pack._optimizer), True
    pack._models.model.train()
    pack._fill_tables(range(TABLE_STEPS))
    started = time.perf_counter()
    pack._capture([pack._readings[0]] * 3)
    torch.cuda.synchronize()
    capture_s = time.perf_counter() - started
    graph = pack._graphs[pack._readings[0]]
    turns = []
    for _ in range(3):
        pack._row.zero_()
        turns.append(gpu_ms(graph.replay, REPLAYS))
    members = len(pack.stages)
    milliseconds = statistics.median(turns)
    return {
        "step_ms": milliseconds,
        "spread_ms": max(turns) - min(turns),
        "member_ms": milliseconds / members,
        "images_per_second": 1e3 * members * pack.stages[0].trial.training.batch_size / milliseconds,
        "capture_s": capture_s,
        "peak_gb": torch.cuda.max_memory_reserved() / 1e9,
        "loss": float(pack._losses[:3].mean()),
        "is_compiled": float(pack._is_compiled),
    }


def table(config: dict[str, Any], cases: Sequence[tuple[dict[str, Any], int]], is_compiled: bool = False) -> Figures:
    """A line for each (changes of the configuration, members); a case that fails is a figure too."""
    for changes, members in cases:
        release()
        label = f"{changes['init_scheme']} M{members}"
        try:
            row: dict[str, Any] = step_figures(new_pack(config, members, **changes), is_compiled)
        except Exception as error:  # noqa: BLE001 - the larger cases may not fit, and the others still count
            row = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"   {label:16s}", {name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()})
        yield label, row


# The checks


def ceilings() -> Figures:
    """The rates of the device: copying, and products of the sizes that occur."""
    yield "device", torch.cuda.get_device_name()
    yield "versions", [torch.__version__, torch.version.cuda, torch.backends.cudnn.version()]
    source = torch.randn(1 << 30, device=CUDA)
    target = torch.empty_like(source)
    copied = min(gpu_ms(partial(target.copy_, source)) for _ in range(8))
    yield "copy_tb_per_s", 2 * source.nbytes / copied / 1e9
    del source, target
    release()
    for m, n, k in ((8192, 8192, 8192), (8192 * 8, 864, 192), (8192 * 8, 768, 192), (8192 * 8, 192, 768)):
        x, y = (torch.randn(*size, device=CUDA, dtype=torch.bfloat16) for size in ((m, k), (k, n)))
        took = statistics.median(gpu_ms(partial(torch.mm, x, y), 5) for _ in range(3))
        rate = 2 * m * n * k / took / 1e9
        print(f"   {m}×{k} by {k}×{n} in bfloat16: {rate:.0f} TFLOP/s")
        yield f"tflop_per_s {m}x{n}x{k}", rate


def attention() -> Figures:
    """Both ways of attention against float64: output, output without gradients, and gradients; relative errors.

    Raises:
        ArithmeticError: one of them is wrong.
    """
    wrong = []
    for tokens, width in ((64, 32), (16, 8), (64, 12), (49, 16), (100, 32), (256, 32), (256, 12)):
        for dtype, bound in ((torch.bfloat16, 2e-2), (torch.float32, 2e-5)):
            for function in (attention_on_cuda, _by_torch):
                errors = attention_errors(function, tokens, width, dtype)
                is_right = all(error < bound for error in errors.values())
                label = f"{function.__name__} N{tokens} d{width} {str(dtype)[6:]}"
                print("   right" if is_right else "   WRONG", label, errors)
                yield label, errors | {"is_right": is_right}
                wrong += [] if is_right else [label]
    if wrong:
        raise ArithmeticError(f"wrong: {', '.join(wrong)}")


def attention_errors(
    function: Callable[[Tensor, Tensor], Tensor], tokens: int, width: int, dtype: torch.dtype
) -> dict[str, float]:
    torch.manual_seed(0)
    projected = torch.randn(4, 16, tokens, 3, 9, width, device=CUDA).to(dtype)
    bias = 4 * torch.randn(4, 9, tokens, tokens + 1, device=CUDA)
    upstream = torch.randn(4, 16, tokens, 9, width, device=CUDA).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in (projected, bias)]
    query, key, value = exact[0].transpose(2, 4).unbind(3)
    expected = attend(query, key, value, exact[1].unsqueeze(1)).transpose(2, 3)
    right = (expected.detach(), expected.detach(), *torch.autograd.grad(expected, exact, upstream.double()))
    given = [tensor.clone().requires_grad_() for tensor in (projected, bias)]
    output = function(given[0], given[1])
    gradients = torch.autograd.grad(output, given, upstream)
    with torch.inference_mode():
        again = function(given[0], given[1])
    found = (output.detach(), again, *gradients)
    names = ("output", "inference", "of_projected", "of_bias")
    pairs = zip(names, found, right, strict=True)
    return {name: float((a.double() - b).norm() / b.norm()) for name, a, b in pairs}


def steps() -> Figures:
    """Captured steps of `reference` against the number of members, and of its twin; then of the model of `laptop`."""
    yield from _with_ratio(table(REFERENCE, [(ATTENTION, 1), (ATTENTION, 16), (ATTENTION, 4), (ATTENTION, 8)]))
    yield from table(REFERENCE, [(TWIN, 16), (TWIN, 1), (ATTENTION, 30)])
    for label, row in table(DIGITS, [(ATTENTION, 1), (ATTENTION, 16), (ATTENTION, 64)]):
        yield f"digits {label}", row


def compiled() -> Figures:
    """The same compiled; the time of the first capture has that of the compilation."""
    yield from table(REFERENCE, [(ATTENTION, 16), (TWIN, 16), (ATTENTION, 1)], is_compiled=True)


def _with_ratio(rows: Figures) -> Figures:
    rates: dict[str, float] = {}
    for label, row in rows:
        rates[label] = row.get("images_per_second", 0.0)
        yield label, row
        if label == "random M16" and rates.get("random M1"):
            ratio = rates[label] / rates["random M1"]
            print(f"   a pack of 16 trains {ratio:.2f} times the images of a pack of 1")
            yield "pack_of_16_against_1", ratio


def plain() -> Figures:
    """A plain training loop of one model, as people write it: timm's ViT of this size, bfloat16 autocast, torch's fused
    AdamW, batches that lie on the device. It has neither data loading nor evaluation, which favours it."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=4, num_classes=10, global_pool="avg", embed_dim=192, depth=12, num_heads=6
    ).to(CUDA)
    images = torch.randn(128, 3, 32, 32, device=CUDA)
    labels = torch.arange(128, device=CUDA) % 10
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    gpu_ms(step, 5)
    milliseconds = statistics.median(gpu_ms(step, 10) for _ in range(3))
    print(f"   {milliseconds:.2f} ms a step")
    yield "step_ms", milliseconds
    yield "images_per_second", 128e3 / milliseconds


def grid() -> Figures:
    """The low-data grid of `reference`, extrapolated from steps that were measured, without start and evaluation."""
    before = json.loads(Path(os.environ["CVIT_GPU_FIGURES"]).read_text())
    for name in ("steps", "compiled"):
        rows = before.get(name, {})
        found = [rows.get(label, {}).get("member_ms") for label in ("random M16", "two_phase M16")]
        if None in found:
            continue
        minutes = (ATTENTION_STEPS * found[0] + TWIN_STEPS * found[1]) / 60_000
        print(f"   {TRIALS} trials by {name}: {minutes:.1f} min")
        yield f"minutes_by_{name}", minutes
        if plain_ms := before.get("plain", {}).get("step_ms"):
            ratio = plain_ms / found[0]
            print(f"   {ratio:.1f} times a plain loop")
            yield f"against_plain_by_{name}", ratio


def real() -> Figures:
    """Trainings on CIFAR-10: `random` and `two_phase` at 5 %, four seeds, as the preset `reference` trains them."""
    from cvit.data.datasets import describe, load
    from cvit.storage import Storage
    from cvit.training.loop import train_pack
    from cvit.vocabulary import TEST_ACCURACY

    dataset = load(describe("cifar10", os.environ["CVIT_DATA_DIR"], download=False))
    config = REFERENCE | {"data_fraction": 0.05}
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(folder)
        for scheme in ("random", "two_phase"):
            trials = [TrialConfig.from_flat(config | {"init_scheme": scheme, "seed": seed}) for seed in range(4)]
            for pack in zip(*(stages_of(trial, 2250) for trial in trials), strict=True):
                started = time.perf_counter()
                reports = train_pack(pack, dataset, storage, CUDA)
                results = [report.result for group in reports for _, report in group if report.result is not None]
                took = time.perf_counter() - started
                found = [value for r in results for name, _, value, _ in r.points if name == TEST_ACCURACY]
                row = {"seconds": took, "member_steps_per_s": len(pack) * pack[0].steps / took, "accuracies": found}
                print(f"   {scheme}, {pack[0].phase}:", row)
                yield f"{scheme} {pack[0].phase}", row


def start() -> Figures:
    """The host's time before and beside the steps: initial models of 30 members, and draws of 128 steps."""
    for scheme in ("random", "mimetic", "conv_structured"):
        flat = REFERENCE | {"init_scheme": scheme}
        stages = [stages_of(TrialConfig.from_flat(flat | {"seed": seed}), NUM_IMAGES)[0] for seed in range(30)]
        started = time.perf_counter()
        first_starts(stages, CUDA)
        yield f"initial models of 30 {scheme}, s", time.perf_counter() - started
    for name, config, members in (("reference", REFERENCE, 30), ("digits", DIGITS, 64)):
        pack = new_pack(config, members)
        draw_batches(pack._data, pack.stages, range(TABLE_STEPS))
        started = time.perf_counter()
        draw_batches(pack._data, pack.stages, range(1000, 1000 + TABLE_STEPS))
        yield f"draws of {members} {name}, ms a step", 1e3 * (time.perf_counter() - started) / TABLE_STEPS
        pack.evaluate(pack._data.validation)
        started = time.perf_counter()
        pack.evaluate(pack._data.validation)
        yield f"evaluation of {NUM_IMAGES} images, {members} {name}, ms", 1e3 * (time.perf_counter() - started)
        started = time.perf_counter()
        pack.states()
        yield f"states of {members} {name} to the host, s", time.perf_counter() - started


def memory() -> Figures:
    """The memory that packs leave behind, one after the other: with a stream for each, cuBLAS kept 67 MB each time."""
    for number in range(4):
        step_figures(new_pack(REFERENCE, 2, depth=2, **ATTENTION))
        release()
        yield f"allocated after pack {number}, MB", torch.cuda.memory_allocated() / 1e6


def share() -> Figures:
    """Member steps per second of one process on the GPU, and of two."""
    for count, members in ((1, 16), (2, 8), (2, 16)):
        environment = os.environ | {"CVIT_GPU_BEGIN_AT": str(time.time() + 20)}
        program = f"from benchmarks.gpu_checks import solo; solo({members})"
        command = [sys.executable, "-c", program]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        rates = [float(process.communicate()[0].split()[-1]) for process in running]
        print(f"   {count} × M{members}: {sum(rates):.0f} member steps a second")
        yield f"{count} x M{members}", rates


def solo(members: int, seconds: float = 3.0) -> None:
    """Prints the member steps per second of this process, begun at a time that others share."""
    pack = new_pack(REFERENCE, members)
    step_figures(pack)
    graph = pack._graphs[pack._readings[0]]
    time.sleep(max(0.0, float(os.environ["CVIT_GPU_BEGIN_AT"]) - time.time()))
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        pack._row.zero_()
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        done += REPLAYS
    print(done * members / (time.perf_counter() - started))


def profile() -> Figures:
    """The kernels that take most of a step of 8 members, as it is and compiled."""
    for name, changes in (("attention", ATTENTION), ("twin", TWIN)):
        for is_compiled in (False, True):
            release()
            pack = new_pack(REFERENCE, 8, **changes)
            step_figures(pack, is_compiled)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
                pack._row.zero_()
                pack._step(pack._readings[0])
                torch.cuda.synchronize()
            events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
            rows = [(round(e.self_device_time_total / 1e3, 3), e.count, e.key[:110]) for e in events[:15]]
            label = f"{name}{', compiled' if is_compiled else ''}"
            print(f"   {label}: {sum(e.count for e in events)} kernels", *rows[:8], sep="\n      ")
            yield label, {"kernels": sum(e.count for e in events), "largest": rows}


CHECKS: dict[str, Callable[[], Figures]] = {
    check.__name__: check
    for check in (ceilings, attention, steps, compiled, plain, grid, real, start, memory, share, profile)
}
