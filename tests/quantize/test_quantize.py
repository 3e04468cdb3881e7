"""What ``qinfer quantize`` writes of a tiny model, read back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantize.tools import TOKENS, logits_of, made

pytestmark = pytest.mark.usefixtures("reference")


LIMITS = {"wint8": 0.1, "wint4": 1.2, "a8w8": 0.6, "fp8": 0.6}
"""Largest deviation of the logits from the plain model's, which have deviation 3. The prompt is
random tokens, unlike the texts of calibration: static scales clip some of it.
"""


@pytest.mark.parametrize("activations", ["token", "tensor"])
@pytest.mark.parametrize("quant", ["wint8", "wint4", "a8w8", "fp8"])
def test_what_is_written_is_read_and_near_the_model(folder, tmp_path, quant, activations):
    if quant in ("wint8", "wint4"):
        if activations == "tensor":
            pytest.skip("no activations are quantised")
        activations = ""
    output = made(folder, tmp_path / "out", quant=quant, activations=activations)
    got, stats = logits_of(output)
    exact, _ = logits_of(folder)
    assert 1e-4 < np.std(got - exact) < LIMITS[quant]
    assert stats.layers_by_scheme == {quant: 12, "none": 1}
    report = json.loads((output / "quantize-report.json").read_text(encoding="utf-8"))
    assert len(report["linears"]) == 12
    assert report["skipped"] == {"lm_head": "the vocabulary head keeps the model's precision"}
    assert (output / "tokenizer.json").exists()
    assert not output.with_name("out.partial").exists()


@pytest.mark.parametrize(("quant", "method"), [("a8w8", "smoothquant"), ("fp8", "absmax")])
def test_paddlenlps_format(folder, tmp_path, quant, method):
    output = made(folder, tmp_path / "out", quant=quant, method=method, format="paddlenlp")
    got, stats = logits_of(output, quant)
    exact, _ = logits_of(folder)
    assert np.std(got - exact) < LIMITS[quant]
    assert stats.layers_by_scheme == {quant: 12, "none": 1}
    scales = json.loads((output / "weight_scales.json").read_text(encoding="utf-8"))
    assert all(name.startswith("qwen2.layers.") for name in scales)


def test_both_formats_hold_the_same_numbers(folder, tmp_path):
    """Bit for bit: one scale for each activation tensor, and nothing that only one can hold."""
    common = {"quant": "a8w8", "method": "mse", "activations": "tensor"}
    one, other = (
        logits_of(made(folder, tmp_path / form, format=form, **common))[0]
        for form in ("compressed-tensors", "paddlenlp")
    )
    np.testing.assert_array_equal(one, other)


def test_smoothing_goes_into_norms_and_the_gated_linear(folder, tmp_path):
    """What is folded away leaves the model as it was, up to rounding to int8."""
    from qinfer.core.checkpoint.files import Checkpoint

    uneven = tmp_path / "uneven"  # one input of many linears is far larger than the others
    shutil.copytree(folder, uneven)
    for path in uneven.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            tensor[5] *= 50 if name.endswith("layernorm.weight") else 1
        save_file(tensors, path)
    plain, smooth = (
        Checkpoint(made(uneven, tmp_path / method, method=method))
        for method in ("absmax", "smoothquant")
    )
    moved = [
        not np.array_equal(plain.read(name), smooth.read(name))
        for name in plain.names()
        if name.endswith("layernorm.weight")
    ]
    assert len(moved) == 6
    assert all(moved)
    name = "model.layers.0.mlp.up_proj.weight"
    norm = "model.layers.0.post_attention_layernorm.weight"
    held = {
        key: c.read(name) * c.read(f"{name}_scale") * c.read(norm).astype(np.float32)
        for key, c in (("plain", plain), ("smooth", smooth))
    }
    ratio = (held["smooth"] * held["plain"]).sum(axis=1) / (held["plain"] ** 2).sum(axis=1)
    back = held["smooth"] / ratio[:, None]
    np.testing.assert_allclose(back, held["plain"], atol=0.03 * np.abs(held["plain"]).max())


@pytest.mark.reference
@pytest.mark.parametrize(
    ("quant", "activations"), [("wint8", ""), ("wint4", ""), ("a8w8", "tensor"), ("fp8", "tensor")]
)
def test_transformers_reads_what_is_written(folder, tmp_path, quant, activations):
    """Where torch, transformers and compressed-tensors are installed. With a scale for each token
    the two round differently: compressed-tensors divides by 127.5 where vLLM and we do by 127.
    """
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    output = made(folder, tmp_path / "out", quant=quant, activations=activations)
    model = transformers.AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(logits_of(output)[0], theirs, atol=2e-4)
