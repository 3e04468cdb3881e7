"""The dynamic backend: Paddle's eager mode, one operator after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle

from qinfer.core.hardware.machine import usable_cores
from qinfer.core.hardware.memory import keep_freed_memory
from qinfer.core.hardware.place import place
from qinfer.core.progress import TerminalProgress
from qinfer.core.protocols import Model
from qinfer.core.specs import BackendPlugin, hookimpl
from qinfer.core.types import (
    Array,
    CacheSpec,
    LayerCache,
    ModelConfig,
    OperatorBuild,
    PluginInfo,
    RunConfig,
    SamplingInput,
    StepInput,
    StepOutput,
)
from qinfer.cuda_ops import ops
from qinfer.cuda_ops.build_cuda import build_cuda, plan_cuda
from qinfer.cuda_ops.choose import plan_operators
from qinfer.cuda_ops.cuda import use_cuda
from qinfer.cuda_ops.graphs import Card
from qinfer.cuda_ops.native import use_native
from qinfer.cuda_ops.record import recorder as operator_recorder
from qinfer.plugins.backends.bandwidth import ReadBandwidth
from qinfer.plugins.backends.graphed import GraphRunner
from qinfer.plugins.backends.recorded import Logits, RecordedSteps, on_device


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
        self.card: Card | None = None

    @hookimpl
    def configure(self, run: RunConfig) -> None:
        """Choose the operators' versions; before anything is loaded, as they arrange weights."""
        if run.device.startswith("gpu"):
            library = build_cuda(plan_cuda(), TerminalProgress().note)
            self.operators = use_cuda(library)
            self.card = Card(library, int(run.device.partition(":")[2] or 0))
        else:
            note = TerminalProgress().note
            self.operators = use_native(require=run.require_kernels, progress=note)

    @hookimpl
    def report_header(self, run: RunConfig) -> str:
        """Which operators run."""
        return self.operators

    @hookimpl
    def plan_operators(self) -> OperatorBuild:
        """The native CPU operators, for this processor and for levels of others."""
        return plan_operators(TerminalProgress().note)

    @hookimpl
    def open_runner(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig
    ) -> DynamicRunner | GraphRunner:
        """Allocate the paged cache and return the runner."""
        blocks = -(-config.max_position_embeddings // cache.block_size)
        most = min(blocks, cache.num_blocks)
        if self.card is not None:
            note = TerminalProgress().note
            return GraphRunner(
                model, cache, self.card, max_blocks=most, most=run.max_num_seqs, note=note
            )
        keep_freed_memory()
        return DynamicRunner(model, cache, max_blocks=most)


class DynamicRunner:
    """Owns the KV cache; every step is one call of the model and the sampling operators."""

    def __init__(self, model: Model, cache: CacheSpec, *, max_blocks: int) -> None:
        self.layers = [_layer_cache(cache, layer) for layer in range(cache.num_layers)]
        self._compute: Callable[[StepInput], Logits] | None

        def compute(batch: StepInput) -> Logits:
            with paddle.no_grad():
                logits = model(batch, self.layers)
                return Logits.of(logits, ops.argmax(logits))

        if (recorder := operator_recorder()) is None:
            self._compute = lambda batch: compute(on_device(batch))
        else:
            note = TerminalProgress().note
            self._compute = RecordedSteps(compute, recorder, table_width=max_blocks, give_up=note)

    def step(self, batch: StepInput, sampling: SamplingInput) -> StepOutput:
        """Run one step; numpy in, numpy out."""
        computed = self._open()(batch)
        if sampling.is_plain:
            return StepOutput(token_ids=computed.tokens.copy())
        with paddle.no_grad():
            tokens, logprobs = ops.choose_tokens(computed.logits, computed.best, sampling)
        if logprobs is None:
            return StepOutput(token_ids=tokens.numpy())
        chosen, top, ids = (part.numpy() for part in logprobs)
        return StepOutput(token_ids=tokens.numpy(), logprobs=chosen, top_logprobs=top, top_ids=ids)

    def logits(self, batch: StepInput) -> Array:
        """The logits [R, vocab_size] float32 of a step, as numpy, with no token chosen."""
        return self._open()(batch).logits.numpy()

    def read_bandwidth(self) -> float:
        """Bytes a second that this processor reads from memory, measured now."""
        return ReadBandwidth(usable_cores()).measure()

    def _open(self) -> Callable[[StepInput], Logits]:
        if self._compute is None:
            raise RuntimeError("the runner has been closed")
        return self._compute

    def close(self) -> None:
        """Drop the model and the cache."""
        self._compute = None
        self.layers = []


def _layer_cache(spec: CacheSpec, layer: int) -> LayerCache:
    """Memory for one layer, and its static scales.

    Not zeroed: pages stay untouched until a block is written, and no operator reads a slot that
    was not.
    """
    slots = [spec.num_blocks, spec.block_size, spec.num_kv_heads]
    keys, values = (paddle.empty([*slots, spec.head_dim], spec.dtype) for _ in range(2))
    if not spec.is_scaled:
        return LayerCache(keys=keys, values=values)
    if spec.scales is None:
        key_scales, value_scales = (paddle.empty(slots) for _ in range(2))
    else:
        key_scales, value_scales = (place(np.array(part)) for part in spec.scales[layer])
    return LayerCache(keys=keys, values=values, key_scales=key_scales, value_scales=value_scales)
