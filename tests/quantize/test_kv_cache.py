"""Static scales of the KV cache: measured, read in both formats, checked, and computed with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from goldens import tiny
from qinfer.core.errors import BadCheckpoint, QinferError, Unsupported
from qinfer.core.loading import cache_layout
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.kv_cache import cache_scales
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, open_engine, select
from qinfer.core.types import CacheSpec, LayerCache, RunConfig, StepInput
from qinfer.cuda_ops import table

CASE = tiny.CASES["gqa"]
FORMATS = ["compressed-tensors", "paddlenlp"]


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    yield
    table.use(table.REFERENCE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tiny model quantised with an int8 cache, by format."""
    folder = tmp_path_factory.mktemp("kv")
    source = tiny.write_checkpoint(folder / "plain", CASE)
    for form in FORMATS:
        settings = QuantizeSettings(
            model=str(source), quant="a8w8c8", method="absmax", format=form, tokens=400
        )
        quantize(settings, folder / form, NoProgress())
    return folder


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


def test_the_native_operators_leave_the_same_keys_and_values(folders, tmp_path, monkeypatch):
    """Which order the blocks of a cache in their own way."""
    scales = []
    for version in ("reference", ""):
        monkeypatch.setenv("QINFER_OPERATORS", version)
        settings = QuantizeSettings(
            model=str(folders / "plain"), quant="wint8", kv_cache_dtype="int8", tokens=400
        )
        quantize(settings, tmp_path / f"by-{version}", NoProgress())
        scales.append(opened_plan(tmp_path / f"by-{version}").kv_scales)
    np.testing.assert_allclose(scales[1], scales[0], rtol=0.02)


@pytest.mark.parametrize("form", FORMATS)
def test_both_formats_hold_a_scale_for_each_head(folders, form):
    run = RunConfig(model=str(folders / form))
    opened = load_model(run, select(run), folders / form, NoProgress())
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
def test_a_model_computes_with_them(folders, monkeypatch, version):
    folder = folders / "paddlenlp"
    static = logits_of(folder, version, monkeypatch)
    found = logits_of(folder, version, monkeypatch, kv_cache_dtype="fp8")
    # The prompt is random tokens, unlike the texts of calibration: some numbers are clipped.
    assert np.std(static) > 1
    assert 1e-3 < np.std(static - found) < 0.4
    if version == "native":
        reference = logits_of(folder, "reference", monkeypatch)
        assert np.std(static - reference) < 0.1


def spoiled(folders, tmp_path, form, change):
    """A copy of a folder with ``change`` made to its scales by name."""
    folder = tmp_path / "spoiled"
    shutil.copytree(folders / form, folder)
    if form == "paddlenlp":
        path = folder / "cachekv_scales.json"
        scales = json.loads(path.read_text(encoding="utf-8"))
        change(scales)
        path.write_text(json.dumps(scales), encoding="utf-8")
        return folder
    path = folder / "model-kv-cache.safetensors"
    scales = load_file(path)
    listed = {name: scale.ravel().tolist() for name, scale in scales.items()}
    change(listed)
    arrays = {name: np.array(scale, np.float32) for name, scale in listed.items()}
    save_file(arrays, path)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    kept = {n: f for n, f in index["weight_map"].items() if f != path.name}
    index["weight_map"] = kept | dict.fromkeys(arrays, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def opened_plan(folder):
    run = RunConfig(model=str(folder))
    return load_model(run, select(run), folder, NoProgress()).plan


def layer_1_values(scales):
    (name,) = (n for n in scales if ".1." in n and ("v_scale" in n or "cachev" in n))
    return name


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(layer_1_values(s)), "no scale for the values of layer 1"),
        (lambda s: s.update({layer_1_values(s): [1.0, -1.0]}), "negative"),
        (lambda s: s.update({layer_1_values(s): [1.0, float("nan")]}), "NaN"),
        (lambda s: s.update({layer_1_values(s): [1.0, 1.0, 1.0]}), "3 scales where 2 heads"),
    ],
)
def test_bad_scales_are_named(folders, tmp_path, form, change, words):
    with pytest.raises(BadCheckpoint, match=words) as caught:
        opened_plan(spoiled(folders, tmp_path, form, change))
    assert caught.value.remedy


@pytest.mark.parametrize("form", FORMATS)
def test_one_scale_for_all_heads_and_one_for_each_query_head(folders, tmp_path, form):
    def change(scales):
        scales[layer_1_values(scales)] = [2.0]
        for name in scales:
            if ".0." in name:
                scales[name] = [1.0, 1.0, 3.0, 3.0]  # four query heads, two share a KV head

    unit = 127 if form == "paddlenlp" else 1
    scales = opened_plan(spoiled(folders, tmp_path, form, change)).kv_scales * unit
    np.testing.assert_allclose(scales[0], [[1, 3], [1, 3]], rtol=1e-6)
    np.testing.assert_allclose(scales[1, 1], [2, 2], rtol=1e-6)


def test_a_head_without_numbers_divides_by_no_zero(folders, tmp_path):
    folder = spoiled(
        folders, tmp_path, "paddlenlp", lambda s: s.update({layer_1_values(s): [0.0, 1.0]})
    )
    assert opened_plan(folder).kv_scales.min() > 0


def test_the_scales_of_several_cards(folders, tmp_path):
    whole = opened_plan(folders / "paddlenlp").kv_scales
    folder = tmp_path / "cards"
    shutil.copytree(folders / "paddlenlp", folder)
    path = folder / "cachekv_scales.json"
    scales = json.loads(path.read_text(encoding="utf-8"))
    for rank in range(2):
        part = {name: listed[rank : rank + 1] for name, listed in scales.items()}
        (folder / f"cachekv_scales_{rank}.json").write_text(json.dumps(part), encoding="utf-8")
    path.unlink()
    np.testing.assert_array_equal(opened_plan(folder).kv_scales, whole)


def test_c8_without_its_file(folders, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(folders / "paddlenlp", folder)
    (folder / "cachekv_scales.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"no cachekv_scales\.json"):
        opened_plan(folder)


@pytest.mark.parametrize(
    ("said", "words"),
    [({"dynamic": True}, ""), ({"symmetric": False}, "no KV cache"), ({"num_bits": 4}, "no KV")],
)
def test_schemes_of_the_cache(folders, tmp_path, said, words):
    folder = tmp_path / "scheme"
    shutil.copytree(folders / "compressed-tensors", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["kv_cache_scheme"] |= said
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if words:
        with pytest.raises(Unsupported, match=words):
            opened_plan(folder)
        return
    plan = opened_plan(folder)
    assert (plan.kv_cache, plan.kv_scales) == ("int8", None)


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
