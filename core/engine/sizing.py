"""How many KV blocks there can be, and how long a context they carry."""

from __future__ import annotations

from dataclasses import replace

from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.types import CacheSpec, RunConfig

DEFAULT_SHARE = 0.5
"""Share of the free memory the cache may take when no size is given."""

DEFAULT_LIMIT = 4 << 30
"""Bytes the cache takes at the most when no size is given."""

CARD_SHARE = 0.85
"""The same of a GPU's, which has nothing else to do and no such limit."""

CHOSEN = {
    "cpu": {"max_num_seqs": 64, "max_batch_tokens": 512, "block_size": 16},
    "gpu": {"max_num_seqs": 256, "max_batch_tokens": 8192, "block_size": 32},
}
"""Sizes that are not given. A card needs many tokens to be busy, and copies large blocks faster."""

SHORTEST_CONTEXT = 512
"""Tokens below which a context is not worth starting with, unless asked for."""


def check_run(run: RunConfig) -> None:
    """Raise UsageError naming every size in ``run`` that is out of range."""
    least = {
        "threads": 0,
        "kv_cache_memory": 0,
        "max_model_len": 0,
        "max_num_seqs": 0,
        "max_batch_tokens": 0,
        "block_size": 0,
    }
    low = [name for name, bound in least.items() if getattr(run, name) < bound]
    if low:
        said = ", ".join(f"{name} must be at least {least[name]}" for name in low)
        raise UsageError(f"{said}; found {', '.join(str(getattr(run, name)) for name in low)}")


def choose_sizes(run: RunConfig, kind: str) -> RunConfig:
    """``run`` with a size for every 0, for a device of that kind ("cpu" or "gpu")."""
    chosen = CHOSEN[kind]
    max_num_seqs = run.max_num_seqs or chosen["max_num_seqs"]
    return replace(
        run,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=run.max_batch_tokens or max(chosen["max_batch_tokens"], max_num_seqs),
        block_size=run.block_size or chosen["block_size"],
    )


def size_cache(
    spec: CacheSpec, run: RunConfig, context: int, memory_free: int, kind: str = "cpu"
) -> tuple[CacheSpec, int]:
    """Give the cache its number of blocks; returns it and the context length it allows.

    ``context`` is the model's own limit in tokens, ``memory_free`` in bytes, ``kind`` the device's
    ("cpu" or "gpu"). No more is taken than
    ``run.max_num_seqs`` full contexts need. Without ``run.max_model_len`` the context shrinks to
    what fits; raises Unsupported, naming the bytes needed, if that is too little.
    """
    wanted = min(run.max_model_len or context, context)
    budget = run.kv_cache_memory or _share(memory_free, kind)
    fitting = budget // spec.bytes_per_block
    needed = wanted if run.max_model_len else min(SHORTEST_CONTEXT, wanted)
    if fitting * spec.block_size < needed:
        blocks = -(-needed // spec.block_size)
        raise Unsupported(
            f"too little memory for the KV cache: a context of {needed} tokens needs "
            f"{_mib(blocks * spec.bytes_per_block)} and {budget >> 20}MiB is set aside for it",
            remedy=f"Give --kv-cache-memory {_mib(blocks * spec.bytes_per_block)} or more, "
            "free memory, or lower --max-model-len.",
        )
    most = run.max_num_seqs * -(-wanted // spec.block_size)
    blocks = min(fitting, most)
    return replace(spec, num_blocks=blocks), min(wanted, blocks * spec.block_size)


def _share(memory_free: int, kind: str) -> int:
    if not memory_free:  # unknown
        return DEFAULT_LIMIT
    if kind == "gpu":
        return int(memory_free * CARD_SHARE)
    return min(int(memory_free * DEFAULT_SHARE), DEFAULT_LIMIT)


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"
