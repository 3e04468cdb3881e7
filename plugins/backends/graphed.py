"""Steps on a GPU: decoding through CUDA graphs, one for each size of batch, the rest eagerly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from qinfer.core.protocols import Model
from qinfer.core.types import CacheSpec, LayerCache, SamplingInput, StepInput, StepOutput
from qinfer.cuda_ops.cuda import empty
from qinfer.cuda_ops.graphs import Card, Graph, view
from qinfer.cuda_ops.ops import argmax, choose_tokens

ALIGNED = 16
"""Bytes every input's part of the buffer is a multiple of."""


class GraphRunner:
    """Owns the KV cache. A step of one token for each sequence replays a graph, of the next larger
    size there is; its inputs travel in one copy.
    """

    def __init__(
        self,
        model: Model,
        cache: CacheSpec,
        card: Card,
        *,
        max_blocks: int,
        most: int,
        note: Callable[[str], None],
    ) -> None:
        """``max_blocks``: the most blocks a sequence can have; ``most``: the most sequences."""
        shape = [cache.num_blocks, cache.block_size, cache.num_kv_heads, cache.head_dim]
        self.cache = []
        for _ in range(cache.num_layers):
            keys, values = (empty(shape, cache.dtype, card.index) for _ in range(2))
            self.cache.append(LayerCache(keys=keys, values=values))
        self.model: Model | None = model
        self.card, self.max_blocks, self.note = card, max_blocks, note
        self.sizes = sizes_up_to(most)
        self.graphs: dict[int, DecodeGraph] = {}

    def step(self, batch: StepInput, sampling: SamplingInput) -> StepOutput:
        """Run one step; numpy in, numpy out."""
        if self.model is None:
            raise RuntimeError("the runner has been closed")
        count = len(batch.token_ids)
        is_decode = count == len(batch.seq_lens) == len(batch.logit_rows)
        with paddle.no_grad():
            if not is_decode or count > self.sizes[-1]:
                return self._choose(self.model(_on_card(batch), self.cache), sampling)
            graph = self._graph(count)
            if is_greedy(sampling):
                return StepOutput(token_ids=graph.tokens(batch))
            return self._choose(graph.logits(batch), _padded(sampling, graph.size), count)

    def close(self) -> None:
        """Drop the model, the cache and the graphs."""
        self.card.wait()
        self.model = None
        self.graphs.clear()
        self.cache = []

    def _graph(self, count: int) -> DecodeGraph:
        size = next(size for size in self.sizes if size >= count)
        if size not in self.graphs:
            model, cache = self.model, self.cache
            assert model is not None
            if not self.graphs:
                self.note("Recording CUDA graphs as batch sizes come up")
            self.graphs[size] = DecodeGraph(
                self.card, lambda batch: model(batch, cache), size, self.max_blocks
            )
        return self.graphs[size]

    def _choose(
        self, logits: Tensor, sampling: SamplingInput, count: int | None = None
    ) -> StepOutput:
        tokens, logprobs = choose_tokens(logits, None, sampling)
        if logprobs is None:
            return StepOutput(token_ids=tokens.numpy()[:count])
        chosen, top, ids = (part.numpy()[:count] for part in logprobs)
        return StepOutput(
            token_ids=tokens.numpy()[:count], logprobs=chosen, top_logprobs=top, top_ids=ids
        )


class DecodeGraph:
    """The graph of one size of batch with its inputs and outputs, which keep their places.

    A sequence that is not there has length 0 and a negative slot: it reads and writes nothing.
    """

    def __init__(
        self, card: Card, model: Callable[[StepInput], Tensor], size: int, max_blocks: int
    ) -> None:
        self.card, self.size = card, size
        self.inputs = _Buffer(card, size, max_blocks)
        self.answer = card.pinned(size * 8).view(np.int64)

        def compute() -> tuple[Tensor, Tensor]:
            logits = model(self.inputs.tensors)
            return logits, argmax(logits)

        self.inputs.upload(None)
        compute()  # loads kernels and plans products, which a recording must not do
        card.wait()
        self.graph = Graph(card, compute)

    def logits(self, batch: StepInput) -> Tensor:
        """Logits [size, vocab_size], overwritten by the next call."""
        self.inputs.upload(batch)
        return self.graph.replay()[0]

    def tokens(self, batch: StepInput) -> NDArray[np.int64]:
        """The token of each sequence that has the largest logit."""
        self.inputs.upload(batch)
        _, tokens = self.graph.replay()
        self.card.copy(self.answer.ctypes.data, tokens.data_ptr(), self.answer.nbytes)
        self.card.wait()
        found: NDArray[np.int64] = self.answer[: len(batch.token_ids)].copy()
        return found


@dataclass(frozen=True)
class _Part:
    name: str
    dtype: str
    shape: list[int]


class _Buffer:
    """A step's inputs side by side: pinned here, and on the card as tensors."""

    def __init__(self, card: Card, size: int, max_blocks: int) -> None:
        parts = [
            _Part("token_ids", "int64", [size]),
            _Part("positions", "int64", [size]),
            _Part("slot_mapping", "int64", [size]),
            _Part("logit_rows", "int64", [size]),
            _Part("query_starts", "int32", [size + 1]),
            _Part("seq_lens", "int32", [size]),
            _Part("block_tables", "int32", [size, max_blocks]),
        ]
        offsets, total = [], 0
        for part in parts:
            offsets.append(total)
            bytes_ = int(np.prod(part.shape)) * np.dtype(part.dtype).itemsize
            total += -(-bytes_ // ALIGNED) * ALIGNED
        self.card, self.size = card, size
        self.pinned = card.pinned(total)
        self.on_card = empty([total], "uint8", card.index)
        self.arrays = {
            part.name: np.ndarray(part.shape, part.dtype, self.pinned, offset)
            for part, offset in zip(parts, offsets, strict=True)
        }
        self.tensors = StepInput(
            **{
                part.name: view(self.on_card, offset, part.shape, part.dtype)
                for part, offset in zip(parts, offsets, strict=True)
            }
        )
        self.arrays["query_starts"][:] = np.arange(size + 1)
        self.arrays["logit_rows"][:] = np.arange(size)
        self.arrays["block_tables"][:] = 0

    def upload(self, batch: StepInput | None) -> None:
        """Fill in a batch of up to ``size`` sequences (None: of none) and queue the copy."""
        count = 0 if batch is None else len(batch.token_ids)
        arrays = self.arrays
        for name, missing in (("token_ids", 0), ("positions", 0), ("slot_mapping", -1)):
            arrays[name][count:] = missing
        arrays["seq_lens"][count:] = 0
        if batch is not None:
            for name in ("token_ids", "positions", "slot_mapping", "seq_lens"):
                arrays[name][:count] = getattr(batch, name)
            arrays["block_tables"][:count, : batch.block_tables.shape[1]] = batch.block_tables
        self.card.copy(self.on_card.data_ptr(), self.pinned.ctypes.data, self.pinned.nbytes)


def sizes_up_to(most: int) -> list[int]:
    """Batch sizes that get a graph: 1, 2, 4, then eights up to 64 and sixteens up to ``most``."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, most + 16, 16)]
    return [size for size in sizes if size < most] + [most]


def is_greedy(sampling: SamplingInput) -> bool:
    """Whether every row takes its largest logit and nothing else is asked for."""
    return bool(
        (sampling.temperature == 0).all()
        and not len(sampling.edit_rows)
        and sampling.num_logprobs < 0
    )


def _padded(sampling: SamplingInput, size: int) -> SamplingInput:
    """With further rows, which are greedy."""
    names: Sequence[str] = ("temperature", "top_k", "top_p", "min_p", "uniform")
    missing = size - len(sampling.temperature)
    padded: dict[str, Any] = {name: np.pad(getattr(sampling, name), (0, missing)) for name in names}
    return replace(sampling, **padded)


def _on_card(batch: StepInput) -> StepInput:
    arrays: dict[str, Any] = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: paddle.to_tensor(value) for name, value in arrays.items()})
