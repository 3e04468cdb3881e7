"""Formats whose own tools are not installable: known quantised weights packed by the documented
layout must give the very logits that the same weights give in compressed-tensors' format.
"""

import re

import numpy as np
import pytest

from qinfer.core.errors import BadCheckpoint, Unsupported
from qinfer.cuda_ops import table
from quant.tools import FOREIGN, linears, logits_of, open_folder, read, write


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    yield
    table.use(table.REFERENCE)


def pack(codes, axis):
    """4-bit codes along an axis into 32-bit words, lowest bits first: one place at a time."""
    codes = np.moveaxis(codes.astype(np.uint64), axis, 0)
    words = np.zeros((len(codes) // 8, *codes.shape[1:]), np.uint64)
    for place in range(8):
        words |= codes[place::8] << np.uint64(4 * place)
    return np.moveaxis(words.astype(np.uint32).view(np.int32), 0, axis)


def codes_of(tensors, module):
    """Codes [out, in] and zero points [out, groups], 0 to 15, and scales, of the fixture."""
    words = tensors.pop(f"{module}.weight_packed").view(np.uint32)
    out, inputs = tensors.pop(f"{module}.weight_shape")
    codes = np.stack([(words >> (4 * i)) & 15 for i in range(8)], axis=2).reshape(out, inputs)
    zero_words = tensors.pop(f"{module}.weight_zero_point").view(np.uint32)
    zeros = np.stack([(zero_words >> (4 * i)) & 15 for i in range(8)], axis=1)
    return (
        codes.astype(int),
        zeros.reshape(out, -1).astype(int),
        tensors.pop(f"{module}.weight_scale"),
    )


def as_gptq(tensors, form=None, shuffled=None):
    """In place, in GPTQ's layout; what config.json then says. ``shuffled`` mixes the groups."""
    for module in linears(tensors, ".weight_packed"):
        codes, zeros, scale = codes_of(tensors, module)
        groups = np.arange(codes.shape[1]) // 64
        if shuffled:
            shuffled.shuffle(groups)
        less = 0 if form == "gptq_v2" else 1
        tensors[f"{module}.qweight"] = pack(codes.T, 0)
        tensors[f"{module}.qzeros"] = pack((zeros.T - less) & 15, 1)
        tensors[f"{module}.scales"] = scale.T
        tensors[f"{module}.g_idx"] = groups.astype(np.int32)
    said = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": bool(shuffled)}
    return said | ({"checkpoint_format": form} if form else {})


def as_awq(tensors):
    """The same in AutoAWQ's, each eight outputs in the order that it packs them."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def interleaved(codes):
        return codes.reshape(len(codes), -1, 8)[:, :, order].reshape(codes.shape)

    for module in linears(tensors, ".weight_packed"):
        codes, zeros, scale = codes_of(tensors, module)
        tensors[f"{module}.qweight"] = pack(interleaved(codes.T), 1)
        tensors[f"{module}.qzeros"] = pack(interleaved(zeros.T), 1)
        tensors[f"{module}.scales"] = scale.T
    return {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}


def as_fp8_blocks(tensors):
    """The same in Qwen's."""
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        tensors[f"{name}_inv"] = tensors.pop(name)
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}


@pytest.mark.parametrize("order", ["none", "act-order"])
@pytest.mark.parametrize("form", [None, "gptq", "gptq_v2"])
def test_gptq(tmp_path, form, order):
    name = "ct-int4-zero-points"
    tensors = read(name)
    shuffled = None if order == "none" else np.random.default_rng(0)
    folder = write(tmp_path / "m", name, tensors, as_gptq(tensors, form, shuffled))
    if order == "none":
        assert (logits_of(folder) == logits_of(FOREIGN / name)).all()
        return
    # With act-order: against the dequantised weights as a plain model.
    plain = {k: v for k, v in tensors.items() if not re.search(r"q(weight|zeros)|scales|g_idx", k)}
    source = read(name)
    for module in linears(source, ".weight_packed"):
        codes, zeros, scale = codes_of(source, module)
        groups = tensors[f"{module}.g_idx"]
        plain[f"{module}.weight"] = ((codes - zeros[:, groups]) * scale[:, groups]).astype(
            np.float32
        )
    expected = logits_of(write(tmp_path / "plain", name, plain, {}))
    np.testing.assert_allclose(logits_of(folder), expected, atol=1e-4)


def test_awq(tmp_path):
    name = "ct-int4-zero-points"
    tensors = read(name)
    folder = write(tmp_path / "m", name, tensors, as_awq(tensors))
    assert (logits_of(folder) == logits_of(FOREIGN / name)).all()


def test_qwens_fp8_blocks(tmp_path):
    name = "ct-fp8-block"
    tensors = read(name)
    folder = write(tmp_path / "m", name, tensors, as_fp8_blocks(tensors))
    assert (logits_of(folder) == logits_of(FOREIGN / name)).all()
    assert open_folder(folder, "fp8").stats.layers_by_scheme == {"fp8": 4, "none": 1}


LAYOUTS = {
    "gptq": ("ct-int4-zero-points", as_gptq, "scales"),
    "awq": ("ct-int4-zero-points", as_awq, "scales"),
    "fp8": ("ct-fp8-block", as_fp8_blocks, "weight_scale_inv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scale: None, "is missing"),
        (lambda scale: -scale, "negative"),
        (lambda scale: scale * np.nan, "NaN"),
        (lambda scale: scale[:, :-1], "where .* needed"),
    ],
    ids=["missing", "negative", "NaN", "short"],
)
def test_bad_scales_are_named(tmp_path, layout, change, words):
    name, put, suffix = LAYOUTS[layout]
    tensors = read(name)
    said = put(tensors)
    scale = f"model.layers.0.self_attn.o_proj.{suffix}"
    changed = change(tensors.pop(scale))
    tensors |= {} if changed is None else {scale: changed}
    with pytest.raises(BadCheckpoint, match=words) as caught:
        open_folder(write(tmp_path / "m", name, tensors, said))
    assert "o_proj" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("gptq", {"bits": 3}, "3 bits"),
        ("gptq", {"checkpoint_format": "marlin"}, "'marlin'"),
        ("gptq", {"dynamic": {"-:.*": {}}}, "other settings for some layers"),
        ("awq", {"version": "gemv"}, "'gemv'"),
        ("awq", {"bits": 8}, "8 bits"),
        ("fp8", {"weight_block_size": [32, 64]}, r"blocks of \[32, 64\]"),
        ("fp8", {"activation_scheme": "magic"}, "'magic'"),
    ],
)
def test_versions_that_are_not_known_are_refused(tmp_path, layout, changes, words):
    name, put, _ = LAYOUTS[layout]
    tensors = read(name)
    folder = write(tmp_path / "m", name, tensors, put(tensors) | changes)
    with pytest.raises(Unsupported, match=words) as caught:
        open_folder(folder)
    assert caught.value.remedy
