"""The dynamic backend: Paddle's eager mode, one operator after the other."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import fields, replace
from typing import Any

import numpy as np
import paddle

from qinfer.core.progress import TerminalProgress
from qinfer.core.protocols import Model
from qinfer.core.specs import BackendPlugin, hookimpl
from qinfer.core.types import (
    CacheSpec,
    ModelConfig,
    OperatorBuild,
    PluginInfo,
    RunConfig,
    SamplingInput,
    StepInput,
    StepOutput,
)
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build import build, plan_build
from qinfer.cuda_ops.native import use_native
from qinfer.cuda_ops.sampling import MAX_SHORTLIST


class Dynamic(BackendPlugin):
    """Runs a model as Python calls it; starts at once and needs no export."""

    info = PluginInfo(
        name="dynamic",
        kind="backend",
        api="1.1",
        summary="eager execution, no export needed",
        aliases=("dygraph",),
    )

    def __init__(self) -> None:
        self.operators = ""

    @hookimpl
    def configure(self, run: RunConfig) -> None:
        """Choose the operators' versions; before anything is loaded, as they arrange weights."""
        self.operators = use_native(require=run.require_kernels, progress=TerminalProgress().note)

    @hookimpl
    def report_header(self, run: RunConfig) -> str:
        """Which operators run."""
        return self.operators

    @hookimpl
    def plan_operators(self) -> OperatorBuild:
        """The native CPU operators, for this processor and compiler."""
        plan = plan_build()
        return OperatorBuild(
            library=plan.library,
            is_built=plan.is_built,
            build=lambda force: build(plan, TerminalProgress().note, force=force),
        )

    @hookimpl
    def open_runner(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig
    ) -> DynamicRunner:
        """Allocate the paged cache and return the runner."""
        keep_freed_memory()
        return DynamicRunner(model, cache)


class DynamicRunner:
    """Owns the KV cache; every step is one call of the model and the sampling operators."""

    def __init__(self, model: Model, cache: CacheSpec) -> None:
        self.model: Model | None = model
        shape = [cache.num_blocks, cache.block_size, cache.num_kv_heads, cache.head_dim]
        # Not zeroed: pages stay untouched until a block is written, and no operator reads a
        # slot that was not.
        self.cache = [
            (paddle.empty(shape, cache.dtype), paddle.empty(shape, cache.dtype))
            for _ in range(cache.num_layers)
        ]

    def step(self, batch: StepInput, sampling: SamplingInput) -> StepOutput:
        """Run one step; numpy in, numpy out."""
        if self.model is None:
            raise RuntimeError("the runner has been closed")
        with paddle.no_grad():
            logits = self.model(_on_device(batch), self.cache)
            tokens, logprobs = ops.choose_tokens(
                logits,
                _on_device(sampling),
                any_sampled=bool(np.any(sampling.temperature > 0)),
                shortlist=_shortlist(sampling, logits.shape[1]),
            )
        if logprobs is None:
            return StepOutput(token_ids=tokens.numpy())
        chosen, top, ids = (part.numpy() for part in logprobs)
        return StepOutput(token_ids=tokens.numpy(), logprobs=chosen, top_logprobs=top, top_ids=ids)

    def close(self) -> None:
        """Drop the model and the cache."""
        self.model = None
        self.cache = []


def _on_device(inputs: Any) -> Any:
    """The same dataclass with its numpy arrays as tensors."""
    arrays = {
        field.name: paddle.to_tensor(value)
        for field in fields(inputs)
        if isinstance(value := getattr(inputs, field.name), np.ndarray)
    }
    return replace(inputs, **arrays)


def _shortlist(sampling: SamplingInput, vocabulary: int) -> int:
    """How many best tokens suffice for all sampled rows; 0 if one of them has no top-k."""
    limits = sampling.top_k[sampling.temperature > 0]
    if limits.size == 0 or limits.min() <= 0 or limits.max() > MAX_SHORTLIST:
        return 0
    return int(min(limits.max(), vocabulary))


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system each time.

    Paddle allocates every temporary with malloc. Above 128 KiB each becomes a fresh mapping whose
    pages the kernel zeroes again on first touch: converting a 7 MB int8 weight took 1.7 ms per
    million elements that way and takes 0.09 ms with this setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, one_gib = -1, -3, 1 << 30
    libc.mallopt(mmap_threshold, one_gib)
    libc.mallopt(trim_threshold, one_gib)
