"""PaddleNLP's own quantised checkpoints, made of known weights: the logits of those weights."""

import ml_dtypes
import numpy as np
import pytest

from goldens.steps import step_logits
from qinfer.core.errors import BadCheckpoint
from qinfer.cuda_ops import table
from quant.tools import BASE, FOREIGN, PROMPT, linears, logits_of, open_folder, read, write


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    yield
    table.use(table.REFERENCE)


def paddlenlp(tensors, *, held="float"):
    """A compressed-tensors W8A8 model as PaddleNLP's quantiser saves it, with its scale files."""
    arrays, act, weight = {}, {}, {}
    for key, array in tensors.items():
        module, _, part = key.rpartition(".")
        theirs = module.replace("model.", "qwen2.")
        if part in ("weight_scale", "input_scale"):
            top = (
                448
                if f"{module}.weight" in tensors and is_fp8(tensors[f"{module}.weight"])
                else 127
            )
            listed = (array.astype(np.float64).ravel() * top).tolist()
            if part == "input_scale":
                act[f"{theirs}.activation_quanter"] = listed[0]
            else:
                weight[f"{theirs}.weight_quanter"] = listed if len(listed) > 1 else listed[0]
        else:
            is_linear = "_proj.weight" in key
            own = array.astype(ml_dtypes.bfloat16) if is_linear and held == "float" else array
            arrays[f"{theirs}.{part}"] = own.T if is_linear else array
    return arrays, act, weight


def is_fp8(array):
    return array.dtype == ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize("held", ["float", "true"])
@pytest.mark.parametrize(
    ("name", "kind"), [("ct-int8-static", "a8w8"), ("ct-fp8-static", "a8w8_fp8")]
)
def test_paddlenlp(tmp_path, name, kind, held):
    arrays, act, weight = paddlenlp(read(name), held=held)
    folder = write(tmp_path / "m", name, arrays, {"quant_type": kind},
                   act_scales=act, weight_scales=weight)  # fmt: skip
    np.testing.assert_allclose(logits_of(folder), logits_of(FOREIGN / name), atol=1e-4)
    assert open_folder(folder, kind).run.quant == "paddlenlp"


def plain_model(tmp_path, name, tensors):
    """The dequantised weights as an unquantised checkpoint's logits."""
    plain = {k: v for k, v in tensors.items() if "_scale" not in k}
    for module in linears(tensors, ".weight_scale"):
        plain[f"{module}.weight"] = plain[f"{module}.weight"] * tensors[f"{module}.weight_scale"]
    return logits_of(write(tmp_path / "plain", name, plain, {}))


def test_paddlenlp_with_smoothing_shift_and_layers_left_out(tmp_path):
    """Smooth and shift vectors that undo themselves: near the model without them."""
    name, rng = "ct-int8-static", np.random.default_rng(3)
    source = read(name)
    expected = plain_model(tmp_path, name, source)
    arrays, act, weight = paddlenlp(source)
    prefix = "qwen2.layers.0."
    # down_proj is left in 16 bits, as in PaddleNLP's presets for Qwen, and has vectors.
    down = f"{prefix}mlp.down_proj"
    for scales, what in ((act, "activation"), (weight, "weight")):
        del scales[f"{down}.{what}_quanter"]
    whole = source[f"{BASE}mlp.down_proj.weight"] * source[f"{BASE}mlp.down_proj.weight_scale"]
    smooth = rng.uniform(0.5, 2, whole.shape[1]).astype(np.float32)
    shift = rng.normal(size=whole.shape[1]).astype(np.float32)
    del arrays[f"{down}.weight"]
    arrays[f"{down}.layer.weight"] = (whole / smooth).T.astype(np.float32)
    arrays[f"{down}.smooth_weight"], arrays[f"{down}.shift_bias"] = smooth, shift
    arrays[f"{down}.layer.bias"] = -whole @ shift
    # o_proj is quantised, its scales stand under ".layer".
    o = f"{prefix}self_attn.o_proj"
    weight[f"{o}.layer.weight_quanter"] = weight.pop(f"{o}.weight_quanter")
    act[f"{o}.layer.activation_quanter"] = act.pop(f"{o}.activation_quanter")
    # The norm's bias shifts what q, k and v get, and their biases take it back.
    moved = (rng.normal(size=64) * 0.05).astype(np.float32)
    arrays[f"{prefix}input_layernorm.bias"] = moved
    for part in "qkv":
        module = f"{BASE}self_attn.{part}_proj"
        whole = source[f"{module}.weight"] * source[f"{module}.weight_scale"]
        arrays[f"{prefix}self_attn.{part}_proj.bias"] = source[f"{module}.bias"] - whole @ moved
    folder = write(tmp_path / "m", name, arrays, {"quant_type": "a8w8"},
                   act_scales=act, weight_scales=weight)  # fmt: skip
    opened = open_folder(folder)
    got = step_logits(opened, PROMPT, [len(PROMPT)])
    assert opened.stats.layers_by_scheme["none"] == 2
    assert np.abs(got - expected).max() < 0.5
    assert np.abs(got - expected).mean() < 0.1


def spoil(scales, value, key="o_proj"):
    for name in scales:
        if key in name:
            scales[name] = value(scales[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays, act, weight: spoil(act, lambda a: -a), "negative"),
        (lambda arrays, act, weight: spoil(act, lambda a: "x"), "NaN"),
        (lambda arrays, act, weight: spoil(weight, lambda a: a[:-1]), "63 scales where 64"),
        (lambda arrays, act, weight: act.pop("qwen2.layers.0.mlp.up_proj.activation_quanter"),
         "a scale for its weights and none for its input"),
        (lambda arrays, act, weight: spoil(arrays, lambda a: a * 0.5), "are no integers"),
        (lambda arrays, act, weight: spoil(arrays, lambda a: a * 2), "beyond 128"),
    ],
)  # fmt: skip
def test_damaged_paddlenlp_folders(tmp_path, change, words):
    arrays, act, weight = paddlenlp(read("ct-int8-static"))
    change(arrays, act, weight)
    folder = write(tmp_path / "m", "ct-int8-static", arrays, {"quant_type": "a8w8"},
                   act_scales=act, weight_scales=weight)  # fmt: skip
    with pytest.raises(BadCheckpoint, match=words):
        open_folder(folder)


def test_paddlenlp_without_its_scale_files(tmp_path):
    arrays, act, _ = paddlenlp(read("ct-int8-static"))
    folder = write(tmp_path / "m", "ct-int8-static", arrays, {"quant_type": "a8w8"}, act_scales=act)
    with pytest.raises(BadCheckpoint, match=r"no weight_scales\.json"):
        open_folder(folder)


def test_scales_of_several_cards_are_put_together(tmp_path):
    arrays, act, weight = paddlenlp(read("ct-int8-static"))
    halves = [{}, {}]
    for key, scale in weight.items():
        rows = "o_proj" in key or "down_proj" in key
        for rank, half in enumerate(halves):
            middle = len(scale) // 2
            half[key] = scale if rows else scale[rank * middle : (rank + 1) * middle]
    files = {f"weight_scales_{i}": half for i, half in enumerate(halves)}
    files |= {f"act_scales_{i}": act for i in range(2)}
    folder = write(tmp_path / "m", "ct-int8-static", arrays, {"quant_type": "a8w8"}, **files)
    one = write(tmp_path / "one", "ct-int8-static", arrays, {"quant_type": "a8w8"},
                act_scales=act, weight_scales=weight)  # fmt: skip
    assert (logits_of(folder) == logits_of(one)).all()
