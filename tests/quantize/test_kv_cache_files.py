"""Static scales of the KV cache as they lie in files: read in both formats, and refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qinfer.core.errors import BadCheckpoint, Unsupported
from quantize.tools import KV_FORMATS, opened_plan

pytestmark = pytest.mark.usefixtures("reference")


def spoiled(kv_folders, tmp_path, form, change):
    """A copy of a folder with ``change`` made to its scales by name."""
    folder = tmp_path / "spoiled"
    shutil.copytree(kv_folders / form, folder)
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


def layer_1_values(scales):
    (name,) = (n for n in scales if ".1." in n and ("v_scale" in n or "cachev" in n))
    return name


@pytest.mark.parametrize("form", KV_FORMATS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(layer_1_values(s)), "no scale for the values of layer 1"),
        (lambda s: s.update({layer_1_values(s): [1.0, -1.0]}), "negative"),
        (lambda s: s.update({layer_1_values(s): [1.0, float("nan")]}), "NaN"),
        (lambda s: s.update({layer_1_values(s): [1.0, 1.0, 1.0]}), "3 scales where 2 heads"),
    ],
)
def test_bad_scales_are_named(kv_folders, tmp_path, form, change, words):
    with pytest.raises(BadCheckpoint, match=words) as caught:
        opened_plan(spoiled(kv_folders, tmp_path, form, change))
    assert caught.value.remedy


@pytest.mark.parametrize("form", KV_FORMATS)
def test_one_scale_for_all_heads_and_one_for_each_query_head(kv_folders, tmp_path, form):
    def change(scales):
        scales[layer_1_values(scales)] = [2.0]
        for name in scales:
            if ".0." in name:
                scales[name] = [1.0, 1.0, 3.0, 3.0]  # four query heads, two share a KV head

    unit = 127 if form == "paddlenlp" else 1
    scales = opened_plan(spoiled(kv_folders, tmp_path, form, change)).kv_scales * unit
    np.testing.assert_allclose(scales[0], [[1, 3], [1, 3]], rtol=1e-6)
    np.testing.assert_allclose(scales[1, 1], [2, 2], rtol=1e-6)


def test_a_head_without_numbers_divides_by_no_zero(kv_folders, tmp_path):
    folder = spoiled(
        kv_folders, tmp_path, "paddlenlp", lambda s: s.update({layer_1_values(s): [0.0, 1.0]})
    )
    assert opened_plan(folder).kv_scales.min() > 0


def test_the_scales_of_several_cards(kv_folders, tmp_path):
    whole = opened_plan(kv_folders / "paddlenlp").kv_scales
    folder = tmp_path / "cards"
    shutil.copytree(kv_folders / "paddlenlp", folder)
    path = folder / "cachekv_scales.json"
    scales = json.loads(path.read_text(encoding="utf-8"))
    for rank in range(2):
        part = {name: listed[rank : rank + 1] for name, listed in scales.items()}
        (folder / f"cachekv_scales_{rank}.json").write_text(json.dumps(part), encoding="utf-8")
    path.unlink()
    np.testing.assert_array_equal(opened_plan(folder).kv_scales, whole)


def test_c8_without_its_file(kv_folders, tmp_path):
    folder = tmp_path / "lacking"
    shutil.copytree(kv_folders / "paddlenlp", folder)
    (folder / "cachekv_scales.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"no cachekv_scales\.json"):
        opened_plan(folder)


@pytest.mark.parametrize(
    ("said", "words"),
    [({"dynamic": True}, ""), ({"symmetric": False}, "no KV cache"), ({"num_bits": 4}, "no KV")],
)
def test_schemes_of_the_cache(kv_folders, tmp_path, said, words):
    folder = tmp_path / "scheme"
    shutil.copytree(kv_folders / "compressed-tensors", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["kv_cache_scheme"] |= said
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if words:
        with pytest.raises(Unsupported, match=words):
            opened_plan(folder)
        return
    plan = opened_plan(folder)
    assert (plan.kv_cache, plan.kv_scales) == ("int8", None)
