"""Small checkpoints quantised by other projects' code, with the logits that code computes.

    pip install torch transformers compressed-tensors numpy
    PYTHONPATH=tests python -m goldens.make_foreign [CASE ...]

Each case is a folder of goldens/foreign: config.json, model.safetensors and logits.npy. The model
is one layer of random float32 weights; the logits are compressed-tensors' own simulation of the
quantised model, with its rounding of activations.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import Qwen2Config, Qwen2ForCausalLM

OUT = Path(__file__).parent / "foreign"
PROMPT = [7, 3, 40, 11, 60, 22, 5, 33, 18, 2, 49, 27]

INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FP8 = {**INT8, "type": "float"}
INT4 = {**INT8, "num_bits": 4}
TOKEN = {"strategy": "token", "dynamic": True}
STATIC = {"strategy": "tensor", "dynamic": False}
CHANNEL = {"strategy": "channel"}
LINEAR = ["Linear"]


def group(weights: dict[str, Any], inputs: dict[str, Any] | None = None, targets=LINEAR):
    return {"targets": targets, "weights": weights, "input_activations": inputs}


def groups_of(size: int, **more: Any) -> dict[str, Any]:
    return {**INT4, "strategy": "group", "group_size": size, **more}


BLOCK = {**FP8, "strategy": "block", "block_structure": [32, 32]}
RUN = {**FP8, "strategy": "group", "group_size": 32, "dynamic": True}

CASES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "ct-int8-dynamic": ([group({**INT8, **CHANNEL}, {**INT8, **TOKEN})], []),
    "ct-int8-static": ([group({**INT8, **CHANNEL}, {**INT8, **STATIC})], []),
    "ct-int8-weights": ([group({**INT8, **CHANNEL})], []),
    "ct-fp8-dynamic": ([group({**FP8, **CHANNEL}, {**FP8, **TOKEN})], []),
    "ct-fp8-static": ([group({**FP8, "strategy": "tensor"}, {**FP8, **STATIC})], []),
    "ct-fp8-block": ([group(BLOCK, RUN)], []),
    "ct-int4-groups": ([group(groups_of(32))], []),
    "ct-int4-zero-points": ([group(groups_of(64, symmetric=False))], []),
    "ct-mixed": (
        [
            group({**INT8, **CHANNEL}, {**INT8, **TOKEN}),
            group({**FP8, **CHANNEL}, {**FP8, **TOKEN}, ["re:.*down_proj", "re:.*k_proj"]),
        ],
        ["re:.*q_proj"],
    ),
}


def model() -> Any:
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        dtype="float32",
    )
    made = Qwen2ForCausalLM(config).eval()
    for name, parameter in made.named_parameters():
        spread = {"embed": 0.4, "norm": 0.1, "bias": 0.3}
        gain = next((s for key, s in spread.items() if key in name), 0.15)
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, gain)
    return made


def calibrate(made: Any) -> None:
    """Scales from absolute maxima; different ones for q, k and v, as a calibration may give."""
    seen: dict[str, torch.Tensor] = {}

    def look(name: str):
        return lambda module, args: seen.__setitem__(name, args[0].detach())

    linears = {n: m for n, m in made.named_modules() if hasattr(m, "quantization_scheme")}
    hooks = [m.register_forward_pre_hook(look(n)) for n, m in linears.items()]
    for module in linears.values():
        module.quantization_enabled = False
    made(torch.tensor([PROMPT]))
    for hook in hooks:
        hook.remove()
    for name, module in linears.items():
        module.quantization_enabled = True
        scheme = module.quantization_scheme
        weights(module, scheme.weights)
        if scheme.input_activations and not scheme.input_activations.dynamic:
            top = seen[name].abs().max() * (0.9 if "k_proj" in name else 1.0)
            scale, _ = calculate_qparams(-top, top, scheme.input_activations)
            module.input_scale.data.copy_(scale.reshape(module.input_scale.shape))


def weights(module: Any, args: Any) -> None:
    """weight_scale and what goes with it."""
    weight = module.weight.data
    if args.strategy == "tensor":
        low, high = weight.min(), weight.max()
    elif args.strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    elif args.strategy == "block":
        rows, columns = args.block_structure
        tiles = weight.reshape(weight.shape[0] // rows, rows, -1, columns)
        low, high = tiles.amin((1, 3)), tiles.amax((1, 3))
    else:
        tiles = weight.reshape(weight.shape[0], -1, args.group_size)
        low, high = tiles.amin(2), tiles.amax(2)
    scale, zero = calculate_qparams(low, high, args)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))


@torch.no_grad()
def write(name: str) -> None:
    groups, ignore = CASES[name]
    made = model()
    config = QuantizationConfig(
        config_groups={f"group_{i}": g for i, g in enumerate(groups)},
        ignore=["lm_head", *ignore],
        quantization_status="initialized",
    )
    apply_quantization_config(made, config)
    calibrate(made)
    logits = made(torch.tensor([PROMPT])).logits[0].float().numpy()
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    compressor = ModelCompressor.from_pretrained_model(made)
    compressor.compress_model(made)
    made.save_pretrained(folder)
    compressor.update_config(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.save(folder / "logits.npy", logits)


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        write(case)
