"""Write a tiny model as a real checkpoint folder, in the layouts found in the wild."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from goldens.case import Case
from goldens.tokenizer import write_tokenizer
from goldens.weights import weights

LINEAR_SUFFIXES = (
    *("_proj.weight", "lm_head.weight", "mlp.gate.weight", "_expert_gate.weight"),
    *(".c_attn.weight", ".w1.weight", ".w2.weight"),
)


def write_checkpoint(
    folder: str | Path,
    case: Case,
    *,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    layout: Literal["hf", "paddle"] = "hf",
    shards: int = 1,
    config_style: Literal[4, 5] = 4,
    store_tied_head: bool = False,
    tensors: Mapping[str, np.ndarray] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Make ``folder`` with config, weights and tokenizer, and return it.

    layout "paddle": linear weights [in, out] and PaddleNLP's prefix for ``model.``. shards > 1:
    that many files and an index. config_style: the transformers major whose config.json is
    imitated.
    store_tied_head: a tied model's head is in the file as well, as some writers leave it.
    tensors: written instead of the case's own (HF names); one that already has a dtype other
    than float32 keeps it. config: keys laid over config.json; a value of None removes the key.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = dict(weights(case) if tensors is None else tensors)
    if store_tied_head and case.tied:
        held["lm_head.weight"] = held["model.embed_tokens.weight"]
    stored = {name: _cast(tensor, dtype) for name, tensor in held.items()}
    if layout == "paddle":
        stored = _paddle_layout(stored, case)
    _write_tensors(folder, stored, shards, {"format": "pt" if layout == "hf" else "np"})
    tokens = write_tokenizer(folder, case.vocab_size)
    raw = _config(case.config, dtype, "paddle" if layout == "paddle" else config_style)
    raw |= {"bos_token_id": tokens.end_of_text, "eos_token_id": tokens.end_of_text}
    raw |= dict(config or {})
    _write_json(folder / "config.json", {k: v for k, v in raw.items() if _keep(k, v, config)})
    generation = {
        "bos_token_id": tokens.end_of_text,
        "eos_token_id": [tokens.im_end, tokens.end_of_text],
        "pad_token_id": tokens.end_of_text,
        "do_sample": False,
    }
    _write_json(folder / "generation_config.json", generation)
    return folder


def _keep(key: str, value: Any, overrides: Mapping[str, Any] | None) -> bool:
    """Whether a config key is written: an override of None asks for its removal."""
    return value is not None or key not in (overrides or {})


def _cast(tensor: np.ndarray, dtype: str) -> np.ndarray:
    if tensor.dtype != np.float32:
        return tensor
    if dtype == "bfloat16":
        import ml_dtypes

        return tensor.astype(ml_dtypes.bfloat16)
    return tensor.astype(dtype)


def _paddle_layout(tensors: Mapping[str, np.ndarray], case: Case) -> dict[str, np.ndarray]:
    """PaddleNLP's names and shapes. Its head is [in, out] too, unless tied to the embedding."""
    out, tied = {}, case.tied
    prefix = "model." if case.family.startswith("qwen3") else f"{case.family}."
    for name, tensor in tensors.items():
        linear = name.endswith(LINEAR_SUFFIXES) and not (tied and name == "lm_head.weight")
        start, _, rest = name.partition(".")
        new_name = prefix + rest if start in ("model", "transformer") else name
        out[new_name] = np.ascontiguousarray(tensor.T) if linear else tensor
    return out


def _config(raw: dict[str, Any], dtype: str, style: int | str) -> dict[str, Any]:
    if raw["model_type"] == "qwen":
        architectures = ["QWenForCausalLM"] if style == "paddle" else raw["architectures"]
        return raw | {"torch_dtype": dtype, "architectures": architectures}
    if style == "paddle":
        return raw | {"dtype": dtype, "paddlenlp_version": "3.0.0b4"}
    if style == 4:
        return raw | {"torch_dtype": dtype, "transformers_version": "4.51.0"}
    theta, scaling = raw.pop("rope_theta"), raw.pop("rope_scaling", {"rope_type": "default"})
    layers = range(raw["num_hidden_layers"])
    window = raw["max_window_layers"] if raw["use_sliding_window"] else len(layers)
    kinds = ["full_attention" if i < window else "sliding_attention" for i in layers]
    if raw["model_type"] == "qwen3_moe":  # what its num_experts is called there
        raw["num_local_experts"] = raw.pop("num_experts")
    return raw | {
        "dtype": dtype,
        "rope_parameters": {"rope_theta": theta, **scaling},
        "layer_types": kinds,
        "transformers_version": "5.0.0",
    }


def _write_tensors(
    folder: Path, tensors: Mapping[str, np.ndarray], shards: int, metadata: dict[str, str]
) -> None:
    from safetensors.numpy import save_file

    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata=metadata)
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
