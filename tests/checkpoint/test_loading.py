import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from checkpoint.tools import (
    DOWN,
    HEAD,
    PLAN,
    QK,
    FakeHooks,
    as_paddle,
    config,
    place,
    rules,
    save,
    tensors,
)
from qinfer.core.arrays import is_finite
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import plan_loading
from qinfer.core.checkpoint.loader import StreamedParts
from qinfer.core.errors import BadCheckpoint, BrokenPlugin
from qinfer.core.types import LinearSpec, QuantPlan, WeightRule

TESTS = Path(__file__).resolve().parents[1]


def written(folder, arrays):
    save(folder / "model.safetensors", arrays)
    return Checkpoint(folder)


def parts_over(folder, arrays, these=None, **changes):
    checkpoint = written(folder, arrays)
    plan = plan_loading(checkpoint, these or rules())
    seen = []
    parts = StreamedParts(
        checkpoint, plan, config(**changes), FakeHooks(), PLAN, place=place, on_tensor=seen.append
    )
    return parts, plan, seen


def load_all(folder, arrays, **changes):
    parts, plan, seen = parts_over(folder, arrays, **changes)
    loaded = {spec.name: parts.linear(spec)[2] for spec in (QK, DOWN, HEAD)}
    loaded |= {name: parts.parameter(name) for name in ("embed", "norm")}
    parts.finish()
    assert sum(seen) == plan.total_bytes
    return loaded, plan, parts


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
@pytest.mark.parametrize("width", [12, 8], ids=["oblong", "square"])
def test_every_dtype_and_layout_loads_to_the_same(tmp_path, dtype, layout, width):
    there = tensors(dtype, width=width)
    if width == 8:  # then k is the only oblong weight
        there["model.k_proj.weight"] = there["model.k_proj.weight"][:4]
    checkpoint = written(tmp_path, as_paddle(there) if layout == "paddle" else there)
    plan = plan_loading(checkpoint, rules(width=width))
    assert plan.layout == layout
    down = LinearSpec(name="down", role="down", in_features=width, out_features=8)
    parts = StreamedParts(checkpoint, plan, config(), FakeHooks(), PLAN, place=place)
    weight = parts.linear(down)[2]["weight"]
    np.testing.assert_array_equal(weight, there["model.down_proj.weight"])
    assert weight.dtype == (np.float32 if dtype == "float64" else there["model.norm.weight"].dtype)
    qk = parts.linear(QK)[2]
    q, k = there["model.q_proj.weight"], there["model.k_proj.weight"]
    np.testing.assert_array_equal(qk["weight"], np.concatenate([q, k]))
    bias = np.concatenate([there["model.q_proj.bias"], there["model.k_proj.bias"]])
    np.testing.assert_array_equal(qk["bias"], bias)
    assert qk["bias"].dtype == np.float32
    np.testing.assert_array_equal(parts.parameter("embed"), there["model.embed_tokens.weight"])
    np.testing.assert_array_equal(
        parts.linear(HEAD)[2]["weight"], there["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("prefix", ["model.", "qwen2."])
def test_where_all_is_square_names_decide(tmp_path, prefix):
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    source = f"{prefix}a_proj.weight"
    rule = WeightRule(target="a.weight", source=(source,), shape=(4, 4), linear=True)
    checkpoint = written(tmp_path, {source: weight})
    plan = plan_loading(checkpoint, [rule])
    assert plan.layout == ("paddle" if prefix == "qwen2." else "huggingface")
    spec = LinearSpec(name="a", role="o", in_features=4, out_features=4)
    quant = QuantPlan(by_layer={"a": PLAN.by_layer["qk"]})
    parts = StreamedParts(checkpoint, plan, config(), FakeHooks(), quant, place=place)
    expected = weight.T if prefix == "qwen2." else weight
    np.testing.assert_array_equal(parts.linear(spec)[2]["weight"], expected)


def test_paddle_layout_under_hugging_face_names(tmp_path):
    """As PaddleNLP writes Qwen3: names say nothing, shapes do."""
    there = tensors()
    renamed = {name.replace("qwen2.", "model."): a for name, a in as_paddle(there).items()}
    loaded, plan, _ = load_all(tmp_path, renamed)
    assert plan.layout == "paddle"
    np.testing.assert_array_equal(loaded["down"]["weight"], there["model.down_proj.weight"])


def test_rounding_and_statistics(tmp_path):
    there = tensors()
    there["model.norm.weight"] = np.float32([1.00390625 + 1e-4] * 8)  # between two bfloat16
    loaded, _, parts = load_all(tmp_path, there)
    expected = there["model.norm.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(loaded["norm"], expected)
    assert (expected != there["model.norm.weight"]).all()
    stats = parts.stats(1.5)
    distinct = sum(array.size for array in there.values())
    assert stats.num_parameters == distinct  # the tied embedding counts once
    assert stats.parameter_bytes == 4 * (distinct + 80)  # and is held twice
    assert stats.layers_by_scheme == {"plain": 3}
    assert stats.skipped == {"head": "why"}
    assert parts.constant(np.ones(2)).dtype == np.float32
    assert parts.constant(np.ones(2), "float64").dtype == np.float64


def test_parameters_in_a_dtype_of_their_own(tmp_path):
    parts, _, _ = parts_over(tmp_path, tensors())
    assert parts.parameter("embed", dtype="bfloat16").dtype == ml_dtypes.bfloat16


def test_too_large_for_the_precision(tmp_path):
    there = tensors()
    there["model.norm.weight"][3] = 1e6
    parts, _, _ = parts_over(tmp_path, there, dtype="float16")
    with pytest.raises(BadCheckpoint, match="norm holds numbers too large for float16"):
        parts.parameter("norm")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(tmp_path, dtype, value):
    there = tensors(dtype)
    there["model.k_proj.weight"][1, 1] = value
    parts, _, _ = parts_over(tmp_path, there)
    with pytest.raises(BadCheckpoint, match=r"tensor model\.k_proj\.weight holds NaN or infinity"):
        parts.linear(QK)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_finite_check_reads_every_chunk(dtype):
    array = np.full(3 * 2**18 + 5, ml_dtypes.finfo(dtype).max, dtype)
    assert is_finite(array)
    for place_ in (0, 2**18, array.size - 1):
        bad = array.copy()
        bad[place_] = np.nan
        assert not is_finite(bad)


def test_sources_of_different_dtypes_are_fused(tmp_path):
    there = tensors("bfloat16")
    there["model.k_proj.weight"] = there["model.k_proj.weight"].astype(np.float16)
    parts, _, _ = parts_over(tmp_path, there)
    weight = parts.linear(QK)[2]["weight"]
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight[8:], there["model.k_proj.weight"])


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
def test_split_and_transpose(tmp_path, layout):
    fused = np.arange(12 * 8, dtype=np.float32).reshape(12, 8)
    other = np.arange(5 * 3, dtype=np.float32).reshape(5, 3)
    stored = fused.T if layout == "paddle" else fused
    checkpoint = written(tmp_path, {"qkv": stored, "other": other})
    these = [
        WeightRule(
            target=f"{name}.weight",
            source=("qkv",),
            op="split",
            shape=(rows, 8),
            sizes=(12,),
            start=start,
            linear=True,
        )
        for name, start, rows in (("q", 0, 6), ("k", 6, 4), ("v", 10, 2))
    ]
    these.append(WeightRule(target="o", source=("other",), op="transpose", shape=(3, 5)))
    plan = plan_loading(checkpoint, these)
    quant = QuantPlan(by_layer=dict.fromkeys("qkv", PLAN.by_layer["qk"]))
    parts = StreamedParts(checkpoint, plan, config(), FakeHooks(), quant, place=place)
    for name, start, rows in (("q", 0, 6), ("k", 6, 4), ("v", 10, 2)):
        spec = LinearSpec(name=name, role="qkv", in_features=8, out_features=rows)
        got = parts.linear(spec)[2]["weight"]
        np.testing.assert_array_equal(got, fused[start : start + rows])
    np.testing.assert_array_equal(parts.parameter("o"), other.T)
    assert parts.stats(0).num_parameters == 12 * 8 + 15


def test_a_model_that_asks_wrongly(tmp_path):
    parts, _, _ = parts_over(tmp_path, tensors())
    parts.parameter("norm")
    for ask, words in (
        (lambda: parts.parameter("norm"), "norm a second time"),
        (lambda: parts.parameter("ghost"), "asks for ghost"),
        (lambda: parts.linear(LinearSpec(name="x", role="o", in_features=1, out_features=1)), "x"),
        (
            lambda: parts.linear(LinearSpec(name="down", role="o", in_features=8, out_features=12)),
            r"down.weight as \[12, 8\]",
        ),
        (parts.finish, "never asks for: embed, head.weight"),
    ):
        with pytest.raises(BrokenPlugin, match=words) as caught:
            ask()
        assert caught.value.exit_code == 3


PEAK = """
import json, resource, sys
import numpy as np
from pathlib import Path
from checkpoint.tools import FakeHooks, PLAIN, config, place
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import plan_loading
from qinfer.core.checkpoint.loader import StreamedParts
from qinfer.core.types import LinearSpec, QuantPlan, WeightRule
n, count = int(sys.argv[2]), int(sys.argv[3])
rules = [WeightRule(target=f"{i}.weight", source=(f"a{i}", f"b{i}"), op="fuse", shape=(2 * n, n),
                    sizes=(n, n), linear=True) for i in range(count)]
specs = [LinearSpec(name=str(i), role="o", in_features=n, out_features=2 * n) for i in range(count)]
quant = QuantPlan(by_layer={spec.name: PLAIN for spec in specs})
checkpoint = Checkpoint(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parts = StreamedParts(checkpoint, plan_loading(checkpoint, rules), config(), FakeHooks(), quant,
                      place=place)
kept = [parts.linear(spec) for spec in specs]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"grown": (after - before) * 1024, "held": parts.stats(0).parameter_bytes}))
"""


def test_peak_memory(tmp_path):
    """No more than what is held, and a tensor and its sources on top."""
    n, count = 2048, 12
    block = np.ones((n, n), np.float32)
    save(tmp_path / "model.safetensors", {f"{x}{i}": block for i in range(count) for x in "ab"})
    command = [sys.executable, "-c", PEAK, str(tmp_path), str(n), str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(TESTS)}
    )
    result = json.loads(done.stdout)
    assert result["held"] == count * 2 * block.nbytes
    assert result["grown"] < result["held"] + 3 * block.nbytes + 30e6
