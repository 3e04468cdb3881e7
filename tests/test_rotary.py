"""Position tables against the formulas, written again in float64 and independently."""

import math
from dataclasses import replace

import numpy as np
import pytest

from qinfer.core.rotary import first_row, log_scales, rotary_table
from qinfer.core.types import ModelConfig, RotaryScaling

CONFIG = ModelConfig(
    model_type="qwen",
    vocab_size=8,
    hidden_size=64,
    intermediate_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    max_position_embeddings=1000,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    tie_word_embeddings=False,
)
DYNAMIC = RotaryScaling(kind="dynamic", factor=2.0, original=100)


def angles_of(table, dim=16):
    """Position times frequency of each row, modulo a turn."""
    return np.arctan2(table[:, 3 * dim // 2 * 1 : 2 * dim][:, : dim // 2], table[:, : dim // 2])


def turns(frequencies, positions):
    angle = np.arange(positions)[:, None] * np.asarray(frequencies)
    return np.arctan2(np.sin(angle), np.cos(angle))


def test_linear_divides_positions():
    plain = rotary_table(50, 16, 1e4)
    scaling = RotaryScaling(kind="linear", factor=4.0, original=50)
    stretched = rotary_table(200, 16, 1e4, scaling)
    np.testing.assert_allclose(stretched[::4], plain, atol=1e-6)


def test_dynamic_has_qwens_alpha_for_each_prompt_length():
    """modeling_qwen.py: alpha = max(2^ceil(log2(n / seq_length) + 1) - 1, 1)."""
    config = replace(CONFIG, rotary_scaling=DYNAMIC)
    table = rotary_table(1000, 16, 1e4, DYNAMIC)
    for prompt in (1, 50, 100, 101, 199, 200, 201, 400, 401, 999, 1000):
        alpha = max(2 ** math.ceil(math.log2(prompt / 100) + 1) - 1, 1)
        base = 1e4 * alpha ** (16 / 14)
        frequencies = base ** (-np.arange(8) / 8)
        row = first_row(config, prompt)
        got = angles_of(table[row : row + 1000])
        difference = np.exp(1j * got) - np.exp(1j * turns(frequencies, 1000))
        assert np.abs(difference).max() < 1e-6
    assert len(table) == first_row(config, 1000) + 1000


def test_other_scalings_have_one_variant():
    assert first_row(CONFIG, 5000) == 0
    linear = RotaryScaling(kind="linear", factor=2.0, original=100)
    assert first_row(replace(CONFIG, rotary_scaling=linear), 5000) == 0


def test_yarn_leaves_fast_dimensions_and_interpolates_slow_ones():
    scaling = RotaryScaling(kind="yarn", factor=4.0, original=4096, attention_factor=1.25)
    table = rotary_table(3, 128, 1e6, scaling).astype(np.float64)
    np.testing.assert_allclose(np.hypot(table[:, :64], table[:, 192:]), 1.25, rtol=1e-6)
    plain = 1e6 ** (-np.arange(64) / 64)
    got = np.arctan2(table[1, 192:], table[1, :64])
    ratio = got / plain
    turned = 4096 * plain / (2 * np.pi)  # turns within the trained length
    assert (np.abs(ratio[turned > 40] - 1) < 1e-5).all()
    assert (np.abs(ratio[turned < 0.8] - 0.25) < 1e-3).all()
    assert (np.diff(ratio) < 1e-4).all()


def test_log_scales():
    assert log_scales(CONFIG) is None
    got = log_scales(replace(CONFIG, log_length=100, rotary_scaling=DYNAMIC))
    # modeling_qwen.py: log_seq_length(i) for the i-th token past seq_length, 1 before.
    want = [math.log(i, 100) if i > 100 else 1 for i in range(1, 1001)]
    assert len(got) == 5000
    np.testing.assert_allclose(got.reshape(5, 1000), [want] * 5, rtol=1e-6)


@pytest.mark.parametrize("head_dim", [2, 20, 128])
def test_a_table_without_scaling(head_dim):
    table = rotary_table(30, head_dim, 1e4)
    half = head_dim // 2
    cos, sin = np.cos(np.arange(30)), np.sin(np.arange(30))
    np.testing.assert_allclose(table[:, 0], cos, atol=1e-6)
    np.testing.assert_allclose(table[:, half], cos, atol=1e-6)
    np.testing.assert_allclose(table[:, 2 * half], -sin, atol=1e-6)
    np.testing.assert_allclose(table[:, 3 * half], sin, atol=1e-6)
