"""A tied Qwen2 checkpoint with a byte-level tokenizer as the same model in a GGUF, for llama.cpp.

Needs the ``gguf`` package (the project's ``demo`` extra).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL, CONTROL = 1, 3
"""GGUF's types of tokens."""


def kept_gguf(checkpoint: Path, folder: Path) -> Path:
    """``checkpoint`` with its matrices in float16, made once and kept in ``folder``."""
    target = folder / f"{checkpoint.name}.F16.gguf"
    if not target.exists():
        part = target.with_suffix(".part")
        _convert(checkpoint, part)
        part.replace(target)
    return target


def _convert(checkpoint: Path, target: Path) -> None:
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, "qwen2")
    _add_shape(writer, config)
    _add_tokenizer(writer, checkpoint, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, values in _tensors(checkpoint):
        kind = np.float32 if values.ndim == 1 else np.float16  # as in every GGUF
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names[stem]}.{suffix}", values.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    """llama.cpp wants a token for every row of the embedding. Its pre-tokenizer is the demo's;
    prompts come as ids, so it splits nothing here."""
    raw = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = raw["model"]["vocab"]
    special = {token["id"] for token in raw["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(ids, key=lambda token: ids[token]))
    writer.add_token_types([CONTROL if i in special else NORMAL for i in range(len(ids))])
    writer.add_token_merges([" ".join(pair) for pair in raw["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    import ml_dtypes  # noqa: F401 - gives numpy the bfloat16 that safetensors asks for
    from safetensors import safe_open

    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)
