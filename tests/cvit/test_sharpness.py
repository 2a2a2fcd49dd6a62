"""The sharpness of attention at the start and its leak, by numbers and in the attention weights of models."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvit.config import TrialConfig
from cvit.init.registry import start_of
from cvit.init.sharpness import sharpness_of
from cvit.models.attention import RelativeAttention


def leak_of(sharpness: float, num_patches: int) -> float:
    """The share of attention off the target of a head whose target lies on the grid, content aside."""
    off = math.exp(-sharpness) + (num_patches - 1) * math.exp(-2 * sharpness)
    return off / (1 + off)


@pytest.mark.parametrize(("num_patches", "leak"), [(16, 0.023), (64, 0.038), (196, 0.077)])
def test_the_leak_at_sharpness_4(num_patches: int, leak: float) -> None:
    """Counted out, for three grids: one zero slot at e⁰, N − 1 patches at e⁻⁴, the target at e⁴."""
    off = 1 + (num_patches - 1) * math.exp(-4)
    assert leak_of(4.0, num_patches) == pytest.approx(off / (math.exp(4) + off), rel=1e-12)
    assert leak_of(4.0, num_patches) == pytest.approx(leak, abs=5e-4)


@given(leak=st.floats(1e-12, 0.4999), num_patches=st.integers(1, 10_000))
def test_a_sharpness_has_the_leak_that_asks_for_it(leak: float, num_patches: int) -> None:
    sharpness = sharpness_of(leak, num_patches)
    assert sharpness > 0
    assert leak_of(sharpness, num_patches) == pytest.approx(leak, rel=1e-8)


@pytest.mark.parametrize("scheme", ["conv_structured", "impulse"])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_equal_leaks_are_equal_at_every_patch_size(scheme: Any, patch_size: int) -> None:
    """In the attention weights of every head and layer, wherever the head's target lies on the grid."""
    flat = {"init_scheme": scheme, "patch_size": patch_size, "attention_leak": 0.01, "embed_dim": 8, "depth": 2}
    config = TrialConfig.from_flat(flat)
    model, _ = start_of(scheme)(config, None)
    layers = [module for module in model.modules() if isinstance(module, RelativeAttention)]
    assert len(layers) == 2
    for layer in layers:
        weights = layer.position_bias().detach().softmax(dim=-1)  # keys are zero: the bias is all there is
        assert not layer.key.weight.any()
        for head in weights[..., :-1]:
            on_target = head.amax(dim=1)
            inside = on_target > 0.5
            assert inside.any()
            torch.testing.assert_close(1 - on_target[inside], torch.full((int(inside.sum()),), 0.01), rtol=1e-3, atol=0)


def test_equal_sharpnesses_leak_more_on_a_finer_grid() -> None:
    leaks = [leak_of(TrialConfig().attention_sharpness, (8 // patch_size) ** 2) for patch_size in (4, 2, 1)]
    assert leaks == sorted(leaks) and leaks[-1] > 1.5 * leaks[0]
