"""What a key of config.json may hold, and collecting what is wrong with the values found."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

LIMITS: Mapping[str, int] = {
    # Far above any published model: what is larger is damage, and would only end in no memory.
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "max_position_embeddings": 2**24,
    "vocab_size": 2**24,
}

DTYPES = ("bfloat16", "float16", "float32")

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Keys that change the mathematics, and the values with which they don't.
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "mlp_bias": (False,),
    "alibi": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_scaling_type": ("default",),
    "rope_scaling_factor": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
}

BIASES = ("attention_bias", "qkv_bias", "no_bias")


class ConfigChecker:
    """Reads keys of one config.json and collects what is wrong with them."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.raw = raw
        self.defaults = defaults
        self.problems: list[str] = []

    def add(self, problem: str) -> None:
        """Note a problem."""
        self.problems.append(problem)

    def get(self, key: str, fallback: Any = None) -> Any:
        """The key's value; null counts as absent, as it does in transformers."""
        for source in (self.raw, self.defaults):
            if source.get(key) is not None:
                return source[key]
        return fallback

    def integer(self, key: str) -> int:
        """A whole number within ``LIMITS``, or 0 and a problem."""
        value = self.get(key)
        if value is None:
            self.add(f"{key}: missing")
        elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMITS[key]:
            self.add(f"{key}: must be a whole number from 1 to {LIMITS[key]}, found {show(value)}")
        else:
            return value
        return 0

    def number(self, key: str, value: Any, high: float) -> float:
        """A finite number in (0, ``high``], or 0 and a problem."""
        if value is None:
            self.add(f"{key}: missing")
        elif not _is_number(value) or not 0 < value <= high or not math.isfinite(value):
            self.add(f"{key}: must be a number above 0, at most {high:g}, found {show(value)}")
        else:
            return float(value)
        return 0.0

    def flag(self, key: str, fallback: bool) -> bool:
        """A boolean, or False and a problem."""
        value = self.get(key, fallback)
        if not isinstance(value, bool):
            self.add(f"{key}: must be true or false, found {show(value)}")
        return value is True

    def text(self, key: str) -> str:
        """A non-empty text, or "" and a problem."""
        value = self.get(key)
        if isinstance(value, str) and value:
            return value
        self.add(
            f"{key}: missing" if value is None else f"{key}: must be text, found {show(value)}"
        )
        return ""

    def dtype(self) -> str:
        """The dtype under its newer or older key, with or without "torch." before it."""
        key = "dtype" if self.raw.get("dtype") is not None else "torch_dtype"
        value = self.get(key, "bfloat16")
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name not in DTYPES:
            self.add(f"{key}: must be one of {', '.join(DTYPES)}, found {show(value)}")
        return str(name)

    def head_dim(self, hidden: int, heads: int) -> int:
        """The explicit width of a head, or hidden size / heads; even, or a problem."""
        if self.get("head_dim") is not None:
            width = self.integer("head_dim")
        elif hidden and heads and hidden % heads:
            self.add(f"hidden_size: {hidden} is not a multiple of num_attention_heads, {heads}")
            return 0
        else:
            width = hidden // heads if heads else 0
        if width % 2:
            self.add(f"head_dim: {width} is odd, and rotary embedding pairs its numbers")
        return width

    def rope_theta(self) -> float:
        """The base of the rotary embedding, from any of the places it may stand in."""
        found: dict[str, Any] = {}
        if self.raw.get("rope_theta") is not None:
            found["rope_theta"] = self.raw["rope_theta"]
        for key in ("rope_parameters", "rope_scaling"):
            part = self.raw.get(key)
            if part is None:
                continue
            if not isinstance(part, Mapping):
                self.add(f"{key}: must be an object, found {show(part)}")
                continue
            self._plain_rope(key, part)
            if part.get("rope_theta") is not None:
                found[f"{key}.rope_theta"] = part["rope_theta"]
        values = [self.number(key, value, 1e12) for key, value in found.items()]
        if len(set(values)) > 1:
            self.add(
                " and ".join(f"{key} = {show(value)}" for key, value in found.items())
                + ": they contradict each other"
            )
        return (
            values[0]
            if values
            else self.number("rope_theta", self.defaults.get("rope_theta"), 1e12)
        )

    def _plain_rope(self, key: str, part: Mapping[str, Any]) -> None:
        for name, value in part.items():
            kind = name in ("rope_type", "type") and value in (None, "default")
            whole = name == "partial_rotary_factor" and value in (None, 1)
            if not (kind or whole or name == "rope_theta"):
                self.add(
                    f"{key}.{show(name)} = {show(value)}: only the plain rotary embedding "
                    "is supported so far"
                )

    def neutral_settings(self, layers: int) -> None:
        """Refuse what would change the result; ignoring it would give wrong text."""
        for key, neutral in NEUTRAL.items():
            value = self.raw.get(key)
            if value is not None and value not in neutral:
                self.add(f"{key} = {show(value)}: not supported yet")
        for key in ("quantization_config", "compression_config"):
            if self.raw.get(key) not in (None, {}):
                self.add(
                    f"{key}: checkpoints that are already quantised are not supported yet; "
                    "use the original one and let --quant quantise it"
                )
        for key in BIASES:
            value, only = self.raw.get(key), self.defaults.get(key)
            if value is not None and only is not None and value is not only:
                self.add(f"{key}: is always {show(only)} in this family, found {show(value)}")
        kinds = self.raw.get("layer_types")
        if kinds is None:
            return
        if not isinstance(kinds, list) or len(kinds) != layers:
            self.add(f"layer_types: must list {layers} layers, found {show(kinds)}")
        elif any(kind != "full_attention" for kind in kinds):
            other = next(kind for kind in kinds if kind != "full_attention")
            self.add(f"layer_types: only full_attention is supported so far, found {show(other)}")

    def tokens(self, key: str, value: Any, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list of them, as a tuple without repetitions."""
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        for token in ids:
            whole = isinstance(token, int) and not isinstance(token, bool)
            if not whole or token < 0 or (vocab_size and token >= vocab_size):
                self.add(f"{key}: must be token ids below vocab_size, found {show(token)}")
                return ()
        return tuple(dict.fromkeys(ids))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def show(value: Any) -> str:
    """A value as JSON would have it, cut to a readable length."""
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else reprlib.repr(value)
