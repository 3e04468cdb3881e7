"""config.json: checks and translation that model families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qinfer.core.config.check import LIMITS, ConfigChecker, show
from qinfer.core.config.keys import refuse_other, refuse_unknown
from qinfer.core.config.layers import read_windows
from qinfer.core.config.rotary import read_rotary
from qinfer.core.errors import BadCheckpoint
from qinfer.core.types import ModelConfig, RotaryScaling

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "vocab_size",
)

Extend = Callable[[ConfigChecker, ModelConfig], ModelConfig]


def decoder_config(
    raw: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    extend: Extend | None = None,
) -> ModelConfig:
    """Check a parsed config.json of a Llama-like decoder and translate it.

    Reads both the keys of transformers 4 (``rope_theta``, ``rope_scaling``, ``torch_dtype``) and
    of transformers 5 (``rope_parameters``, ``dtype``, ``layer_types``). ``defaults`` gives values
    for keys the file may leave out, ``fixed`` the only value the family knows, both under the
    names below; ``names`` says what the family calls them instead. ``extend`` reads the family's
    own keys from the checker and returns the config with what they say.

    Without a default, num_key_value_heads is the number of heads, head_dim is hidden_size / heads,
    hidden_act silu, the dtype bfloat16 and tie_word_embeddings false. ``attention_bias`` is of all
    four projections, ``qkv_bias`` of all but the output.

    Raises BadCheckpoint listing every problem: missing, mistyped and impossible values, and
    settings that would change the model's mathematics and are not understood.
    """
    check = ConfigChecker(raw, {**defaults, **(fixed or {})}, names)
    refuse_other(check, fixed or {})
    config = _read(check)
    config = extend(check, config) if extend else config
    refuse_unknown(check)
    if check.problems:
        raise BadCheckpoint(
            "config.json describes no model that can be run:\n"
            + "\n".join(f"  {problem}" for problem in check.problems),
            remedy="Correct config.json, take it again from where the model was published, or "
            "choose a checkpoint without the settings that are not supported.",
        )
    return config


def _read(check: ConfigChecker) -> ModelConfig:
    """Every field, with 0 or "" in place of a bad one; the problems are in ``check``."""
    size = {key: check.integer(key) for key in SIZES}
    hidden, heads = size["hidden_size"], size["num_attention_heads"]
    grouped = check.get("num_key_value_heads") is not None
    kv_heads = check.integer("num_key_value_heads") if grouped else heads
    if heads and kv_heads and heads % kv_heads:
        check.add(
            f"num_attention_heads: {heads} is not a multiple of num_key_value_heads, {kv_heads}"
        )
    activation = check.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        check.add(f"hidden_act: only silu is supported, found {show(activation)}")
    theta, scaling = read_rotary(check, size["max_position_embeddings"])
    bias = check.flag("attention_bias", False)
    return ModelConfig(
        model_type=check.text("model_type"),
        vocab_size=size["vocab_size"],
        hidden_size=hidden,
        intermediate_size=size["intermediate_size"],
        num_layers=size["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=check.head_dim(hidden, heads),
        max_position_embeddings=_context(size["max_position_embeddings"], scaling),
        rms_norm_eps=check.number("rms_norm_eps", check.get("rms_norm_eps"), 1.0),
        rope_theta=theta,
        tie_word_embeddings=check.flag("tie_word_embeddings", False),
        dtype=check.dtype(),
        eos_token_ids=check.tokens("eos_token_id", check.get("eos_token_id"), size["vocab_size"]),
        qkv_bias=check.flag("qkv_bias", False) or bias,
        output_bias=bias,
        rotary_scaling=scaling,
        windows=read_windows(check, size["num_hidden_layers"]),
    )


def _context(positions: int, scaling: RotaryScaling | None) -> int:
    """Scaling stretches the context even where max_position_embeddings is still the trained one."""
    if scaling is None:
        return positions
    stretched = int(scaling.original * scaling.factor)
    return max(positions, min(stretched, LIMITS["max_position_embeddings"]))
