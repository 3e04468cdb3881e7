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
    "num_experts": 2**16,
    "num_local_experts": 2**16,
    "num_experts_per_tok": 2**16,
    "moe_intermediate_size": 2**20,
    "shared_expert_intermediate_size": 2**20,
    "decoder_sparse_step": 1024,
    "sliding_window": 2**24,
    "seq_length": 2**24,
}

DTYPES = ("bfloat16", "float16", "float32")


class ConfigChecker:
    """Reads keys of one config.json and collects what is wrong with them.

    ``names``: what a family calls some keys instead. ``seen``: the keys that were asked for.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        defaults: Mapping[str, Any],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.raw = raw
        self.defaults = defaults
        self.names = names or {}
        self.problems: list[str] = []
        self.seen: set[str] = set()

    def add(self, problem: str) -> None:
        """Note a problem."""
        self.problems.append(problem)

    def name(self, key: str) -> str:
        """What the family calls ``key``."""
        return self.names.get(key, key)

    def written(self, key: str) -> Any:
        """The key's value in the file; null counts as absent, as it does in transformers."""
        self.seen.add(self.name(key))
        return self.raw.get(self.name(key))

    def get(self, key: str, fallback: Any = None) -> Any:
        """The key's value in the file, else its default."""
        value = self.written(key)
        value = self.defaults.get(key) if value is None else value
        return fallback if value is None else value

    def integer(self, key: str) -> int:
        """A whole number within ``LIMITS``, or 0 and a problem."""
        value, name = self.get(key), self.name(key)
        if value is None:
            self.add(f"{name}: missing")
        elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMITS[key]:
            self.add(f"{name}: must be a whole number from 1 to {LIMITS[key]}, found {show(value)}")
        else:
            return value
        return 0

    def number(self, key: str, value: Any, high: float) -> float:
        """A finite number in (0, ``high``], or 0 and a problem that names ``key``."""
        key = self.name(key)
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
            self.add(f"{self.name(key)}: must be true or false, found {show(value)}")
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
        key = "torch_dtype" if self.written("dtype") is None else "dtype"
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
            self.add(
                f"{self.name('head_dim')}: {width} is odd, and rotary embedding pairs its numbers"
            )
        return width

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
