"""Static scales of the KV cache: measured, written in both formats, and computed with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest

from qinfer.core.errors import QinferError
from qinfer.core.loading import cache_layout
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.kv_cache import cache_scales
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, open_engine, select
from qinfer.core.types import CacheSpec, LayerCache, RunConfig, StepInput
from qinfer.cuda_ops import table
from quantize.tools import KV_FORMATS, opened_plan


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    yield
    table.use(table.REFERENCE)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("by", ["absmax", "percentile", "mse"])
def test_scales_are_those_of_each_head_in_written_slots(rng, dtype, by):
    top = {"int8": 127, "float8_e4m3fn": 448}[dtype]
    shape = (6, 16, 3, 32)  # blocks, slots, heads, numbers
    heads = np.array([1, 30, 0.01], np.float32)[:, None]
    held = [rng.standard_t(4, size=shape).astype(np.float32) * heads for _ in range(2)]
    slots = rng.permutation(96)[:70]
    for part in held:
        part.reshape(-1, 3, 32)[np.setdiff1d(np.arange(96), slots)] = 1e6
    cache = LayerCache(keys=paddle.to_tensor(held[0]), values=paddle.to_tensor(held[1]))
    scales, errors = cache_scales([cache, cache], slots, dtype, by)
    assert scales.shape == (2, 2, 3)
    assert len(errors) == 2
    for number, part in enumerate(held):
        rows = np.abs(part.reshape(-1, 3, 32)[slots]).transpose(1, 0, 2).reshape(3, -1)
        largest = rows.max(axis=1)
        if by == "percentile":
            largest = np.quantile(rows, 0.9999, axis=1)
        if by == "mse":
            assert (scales[0, number] * top <= largest * 1.001).all()
            assert (scales[0, number] * top >= largest * 0.599).all()
        else:
            np.testing.assert_allclose(scales[0, number] * top, largest, rtol=1e-5)


def test_the_native_operators_leave_the_same_keys_and_values(kv_folders, tmp_path, monkeypatch):
    """Which order the blocks of a cache in their own way."""
    scales = []
    for version in ("reference", ""):
        monkeypatch.setenv("QINFER_OPERATORS", version)
        settings = QuantizeSettings(
            model=str(kv_folders / "plain"), quant="wint8", kv_cache_dtype="int8", tokens=400
        )
        quantize(settings, tmp_path / f"by-{version}", NoProgress())
        scales.append(opened_plan(tmp_path / f"by-{version}").kv_scales)
    np.testing.assert_allclose(scales[1], scales[0], rtol=0.02)


@pytest.mark.parametrize("form", KV_FORMATS)
def test_both_formats_hold_a_scale_for_each_head(kv_folders, form):
    run = RunConfig(model=str(kv_folders / form))
    opened = load_model(run, select(run), kv_folders / form, NoProgress())
    scales = opened.plan.kv_scales
    assert scales.shape == (3, 2, 2)
    assert np.unique(scales).size == scales.size
    spec = cache_layout(opened.hooks, opened.config, opened.plan, 16)
    assert spec.dtype == "int8"
    assert spec.scales is scales
    # Nothing beside the numbers is written for a token.
    assert spec.bytes_per_block == 3 * 2 * 16 * 2 * 16
    assert replace(spec, scales=None).bytes_per_block == 3 * 2 * 16 * 2 * (16 + 4)
    # Another type than the scales are for has its own, found on the fly.
    other = cache_layout(opened.hooks, opened.config, opened.plan, 16, "fp8")
    assert (other.dtype, other.scales) == ("float8_e4m3fn", None)


def logits_of(folder, version, monkeypatch, **changes):
    """Of the last token of a prompt in pieces, through the backend's own cache."""
    monkeypatch.setenv("QINFER_OPERATORS", "reference" if version == "reference" else "")
    run = RunConfig(model=str(folder), max_model_len=64, max_num_seqs=1, **changes)
    opened = open_engine(run, select(run), NoProgress())
    tokens = np.random.default_rng(3).integers(0, 300, 50)
    runner = opened.engine.runner
    for start, end in ((0, 30), (30, 49), (49, 50)):
        new = np.arange(start, end)
        batch = StepInput(
            token_ids=tokens[new],
            positions=new,
            query_starts=np.array([0, len(new)], np.int32),
            seq_lens=np.array([end], np.int32),
            slot_mapping=new,
            block_tables=np.arange(4, dtype=np.int32)[None],
            logit_rows=np.array([len(new) - 1]),
        )
        logits = runner.logits(batch)
    opened.engine.close()
    return logits


@pytest.mark.parametrize("version", ["reference", "native"])
def test_a_model_computes_with_them(kv_folders, monkeypatch, version):
    folder = kv_folders / "paddlenlp"
    static = logits_of(folder, version, monkeypatch)
    found = logits_of(folder, version, monkeypatch, kv_cache_dtype="fp8")
    # The prompt is random tokens, unlike the texts of calibration: some numbers are clipped.
    assert np.std(static) > 1
    assert 1e-3 < np.std(static - found) < 0.4
    if version == "native":
        reference = logits_of(folder, "reference", monkeypatch)
        assert np.std(static - reference) < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_cache_dtype": "int4"}, "unknown --kv-cache-dtype 'int4'"),
        ({"kv_cache_dtype": "fp8", "format": "paddlenlp"}, "holds no KV cache in fp8"),
    ],
)
def test_caches_that_cannot_be_written(changes, words):
    with pytest.raises(QinferError, match=words) as caught:
        QuantizeSettings(model="m", **changes).check()
    assert caught.value.remedy


def test_specs_with_scales_are_compared_without_them():
    spec = CacheSpec(num_layers=1, num_kv_heads=1, head_dim=2, dtype="int8")
    assert spec == replace(spec, scales=np.ones((1, 2, 1), np.float32))
