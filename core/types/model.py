"""A decoder's shape and constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary embedding is stretched past ``original``, the tokens it was trained for.

    ``core/rotary.py`` has the formulas. ``attention_factor`` multiplies cosines and sines;
    ``beta_fast``, ``beta_slow`` and ``truncate`` bound the dimensions YaRN blends.
    """

    kind: Literal["linear", "dynamic", "yarn"]
    factor: float
    original: int
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The mixture of experts that replaces the MLP of ``layers``.

    Each token goes through the ``top_k`` likeliest of ``count`` experts of width
    ``intermediate_size``; ``normalise`` makes their weights add up to 1. ``shared_size`` is the
    width of the expert every token goes through, 0 for none.
    """

    count: int
    top_k: int
    intermediate_size: int
    normalise: bool
    layers: frozenset[int]
    shared_size: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder's shape and constants, read from config.json.

    ``max_position_embeddings`` is the longest context, scaling included. ``dtype`` is the
    precision parameters are rounded to; ``compute_dtype`` the one that activations and
    unquantised parameters are held in (on a CPU float32, whose matrix products know no 16-bit
    type). ``windows``: for each layer how many of the last tokens attention sees, 0 for all;
    empty for all in every layer. ``log_length``: queries from this position on are scaled by the
    logarithm of their position to this base; 0 for none. ``extra`` carries what only this
    family's plugin understands.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    dtype: str = "bfloat16"
    compute_dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    rotary_scaling: RotaryScaling | None = None
    windows: tuple[int, ...] = ()
    log_length: int = 0
    experts: ExpertConfig | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
