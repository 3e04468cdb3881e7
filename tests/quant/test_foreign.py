"""Checkpoints that other projects' code quantised, against the logits which that code computes.

goldens/make_foreign.py says how they were made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from goldens.steps import step_logits
from qinfer.core.errors import BadCheckpoint, QinferError, Unsupported, UsageError
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

FOREIGN = Path(__file__).parents[1] / "goldens" / "foreign"
PROMPT = [7, 3, 40, 11, 60, 22, 5, 33, 18, 2, 49, 27]

TOLERANCE = {
    "ct-int8-dynamic": 0.4,  # compressed-tensors divides by absmax / 127.5, this by / 127
    "ct-mixed": 0.4,
    "ct-fp8-dynamic": 0.05,  # ties fall another way where a scale differs by a rounding
    "ct-fp8-block": 0.1,
    "ct-int8-static": 0.3,  # all rows but one agree: a tie
    "ct-fp8-static": 0.02,
    "ct-int8-weights": 1e-3,
    "ct-int4-groups": 5e-3,
    "ct-int4-zero-points": 5e-3,
}
"""Largest difference of a logit; their deviation is 3.4."""


def open_folder(folder: Path, quant: str = "auto"):
    run = RunConfig(model=str(folder), quant=quant)
    return load_model(run, select(run), folder, NoProgress())


@pytest.mark.parametrize("version", ["reference", "native"])
@pytest.mark.parametrize("name", TOLERANCE)
def test_logits_are_those_of_the_code_that_wrote_it(name, version, monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference" if version == "reference" else "")
    folder = FOREIGN / name
    opened = open_folder(folder)
    got = step_logits(opened, PROMPT, [len(PROMPT)])
    table.use(table.REFERENCE)
    difference = np.abs(got - np.load(folder / "logits.npy"))
    assert difference.max() < TOLERANCE[name]
    if "static" in name:
        assert np.median(difference) < 1e-4
    assert opened.stats.skipped["lm_head"] == "the checkpoint holds it unquantised"


def test_every_fixture_is_used():
    assert {path.name for path in FOREIGN.iterdir()} == set(TOLERANCE)


def test_schemes_may_differ_between_layers_and_fused_projections():
    stats = open_folder(FOREIGN / "ct-mixed").stats
    assert stats.layers_by_scheme == {"mixed": 1, "a8w8": 2, "fp8": 1, "none": 1}


@pytest.mark.parametrize(
    ("name", "quant"),
    [("ct-int8-dynamic", "a8w8"), ("ct-fp8-block", "fp8"), ("ct-int4-groups", "weight_only_int4"),
     ("ct-int8-static", "compressed-tensors")],
)  # fmt: skip
def test_naming_what_it_is_agrees(name, quant):
    assert open_folder(FOREIGN / name, quant).run.quant == "compressed-tensors"


@pytest.mark.parametrize("quant", ["none", "fp8", "wint8"])
def test_naming_another_scheme_is_an_error(quant):
    with pytest.raises(UsageError, match=r"contradicts .*\(a8w8; read by compressed-tensors\)"):
        open_folder(FOREIGN / "ct-int8-dynamic", quant)


def changed(tmp_path, name, change):
    """A copy of a fixture with ``change(config, tensors)`` made to it."""
    folder = tmp_path / name
    shutil.copytree(FOREIGN / name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


SCALE = "model.layers.0.self_attn.o_proj.weight_scale"


def set_to(name, value):
    return lambda config, tensors: tensors.__setitem__(name, value(tensors[name]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config, tensors: tensors.pop(SCALE), "o_proj.weight_scale is missing"),
        (set_to(SCALE, lambda t: -t), "is a scale and has negative numbers"),
        (set_to(SCALE, lambda t: t * np.nan), "holds NaN"),
        (set_to(SCALE, lambda t: t[:5].copy()), "has 5 numbers where 64 are needed"),
        (set_to(SCALE, lambda t: t.astype(np.int8)), "is I8, which is no float"),
        (set_to(SCALE.removesuffix("_scale"), lambda t: t[:, :9].copy()), r"not \[64, 64\]"),
        (set_to(SCALE.removesuffix("_scale"), lambda t: t.astype(np.int32)), "is I32 where I8"),
        (lambda config, tensors: tensors.update(extra=np.ones(2)), "surplus +extra"),
    ],
)
def test_damaged_tensors_are_named(tmp_path, change, words):
    with pytest.raises(BadCheckpoint, match=words):
        open_folder(changed(tmp_path, "ct-int8-static", change))


def in_group(**changes):
    def change(config, tensors):
        group = config["quantization_config"]["config_groups"]["group_0"]
        for part, fields in changes.items():
            group[part] = fields and {**(group[part] or {}), **fields}

    return change


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (in_group(weights={"num_bits": 2}), Unsupported, "num_bits 2"),
        (in_group(input_activations={"symmetric": False}), Unsupported, "symmetric False"),
        (in_group(weights=None), Unsupported, "says nothing of its weights"),
        (
            lambda c, t: c["quantization_config"].update(kv_cache_scheme={"num_bits": 4}),
            Unsupported,
            "no KV cache",
        ),
        (lambda c, t: c["quantization_config"].pop("config_groups"), BadCheckpoint, "groups"),
        (lambda c, t: c["quantization_config"].update(quant_method="q9"), BadCheckpoint, "'q9'"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path, change, kind, words):
    with pytest.raises(kind, match=words) as caught:
        open_folder(changed(tmp_path, "ct-int8-static", change))
    assert caught.value.remedy


@pytest.mark.parametrize(("kind", "dtype"), [("float", "float8_e4m3fn"), ("int", "int8")])
def test_the_kv_cache_is_what_the_checkpoint_wants(tmp_path, kind, dtype):
    def change(config, tensors):
        scheme = {"num_bits": 8, "type": kind, "strategy": "tensor", "dynamic": False}
        config["quantization_config"]["kv_cache_scheme"] = scheme
        for name in ("k_scale", "v_scale"):
            tensors[f"model.layers.0.self_attn.{name}"] = np.full(1, 0.5, np.float32)

    plan = open_folder(changed(tmp_path, "ct-int8-static", change)).plan
    assert plan.kv_cache == dtype
    np.testing.assert_array_equal(plan.kv_scales, np.full((1, 2, 1), 0.5))


def test_a_reader_refuses_a_checkpoint_that_is_not_quantised(tmp_path):
    folder = changed(tmp_path, "ct-int8-static", lambda c, t: c.pop("quantization_config"))
    with pytest.raises(QinferError, match="no quantization_config"):
        open_folder(folder, "compressed-tensors")


def test_old_act_order_files_are_put_into_order(tmp_path):
    """compressed-tensors no longer writes weight_g_idx: the same weights with columns shuffled."""
    rng = np.random.default_rng(1)

    def shuffle(config, tensors):
        for name in [n for n in tensors if n.endswith("weight_packed")]:
            base = name.removesuffix("weight_packed")
            columns = tensors[f"{base}weight_shape"][1]
            codes = (tensors[name].view(np.uint32)[:, :, None] >> (4 * np.arange(8))) & 15
            codes = codes.reshape(len(codes), -1)
            order = rng.permutation(columns)
            groups = (np.arange(columns) // 32).astype(np.int32)
            tensors[f"{base}weight_g_idx"] = groups[order]
            words = codes[:, order].reshape(len(codes), -1, 8).astype(np.uint64)
            packed = (words << (4 * np.arange(8, dtype=np.uint64))).sum(axis=2)
            tensors[name] = np.ascontiguousarray(packed.astype(np.uint32)).view(np.int32)
            perms[base] = order

    perms: dict[str, np.ndarray] = {}
    folder = changed(tmp_path, "ct-int4-groups", shuffle)
    from qinfer.core.checkpoint.files import Checkpoint
    from qinfer.plugins.quant.compressed_tensors import CompressedTensors

    read = {}
    for path in (FOREIGN / "ct-int4-groups", folder):
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        name = "model.layers.0.mlp.down_proj.weight"
        found = CompressedTensors().read_stored(None, config, {name: (64, 128)}, Checkpoint(path))
        read[path] = found.linears[name].load()
    plain, ordered = read.values()
    order, perm = ordered["order"], perms["model.layers.0.mlp.down_proj."]
    # Column i of the ordered weight stands for input order[i], which was column perm[order[i]].
    np.testing.assert_array_equal(ordered["weight"], plain["weight"][:, perm[order]])
    np.testing.assert_array_equal(np.sort(order), np.arange(128))
    np.testing.assert_array_equal(perm[order] // 32, np.arange(128) // 32)
