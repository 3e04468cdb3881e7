"""Steps on a GPU: through CUDA graphs, one for each size of step, but long prompts eagerly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from qinfer.core.hardware.place import place
from qinfer.core.protocols import Model
from qinfer.core.types import (
    Array,
    CacheSpec,
    LayerCache,
    OperatorTime,
    SamplingInput,
    StepInput,
    StepOutput,
)
from qinfer.cuda_ops.cuda import empty
from qinfer.cuda_ops.cuda_bandwidth import read_bandwidth
from qinfer.cuda_ops.graphs import Card, Mark
from qinfer.cuda_ops.ops import argmax, edit_logits, sample, token_logprobs
from qinfer.plugins.backends.operator_times import operator_times
from qinfer.plugins.backends.step_buffer import DRAWS, Continued, LooseBuffer
from qinfer.plugins.backends.step_graph import StepGraph, StepSize, decode_sizes, prompt_size

PADDED_HEADS = (64, 128)
"""Head sizes whose attention passes over tokens of no sequence (csrc/cuda/prefill.cu)."""


class GraphRunner:
    """Owns the KV cache. A step replays a graph of the next larger size there is, and its inputs
    travel in one copy. Decoding has a graph at once, a size of step with prompts from its second
    time on; longer ones go eagerly.
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
        self.cache = [_layer_cache(cache, layer, card.index) for layer in range(cache.num_layers)]
        self.model: Model | None = model
        self.card, self.max_blocks, self.note = card, max_blocks, note
        self.device = paddle.device.get_device()
        self.sizes = decode_sizes(most)
        self.pads_prompts = cache.head_dim in PADDED_HEADS
        self.graphs: dict[StepSize, StepGraph] = {}
        self.seen: set[StepSize] = set()
        self.answers = [Answer(card, most) for _ in range(2)]
        self.inputs, self.choices = LooseBuffer(card), LooseBuffer(card)

    def step(self, batch: StepInput, sampling: SamplingInput) -> StepOutput:
        """Run one step; numpy in, numpy out."""
        finish = self.begin(batch, sampling)
        assert finish is not None
        return finish()

    def begin(
        self, batch: StepInput, sampling: SamplingInput, rows: Array | None = None
    ) -> Callable[[], StepOutput] | None:
        """Queue a step, as ``OverlappingRunner`` says; one whose graph is not recorded yet, or that
        wants log-probabilities, does not go on from another.
        """
        is_plain = not sampling.edit_rows.size and sampling.num_logprobs < 0
        size = self._size(batch, is_plain and bool(sampling.temperature.any()))
        if rows is not None and not self._is_ready(size):
            return None
        if size is None or not is_plain:
            return self._compute(size, batch, rows)(sampling)
        answer, before = self._next_answer(), self._continued(rows)
        with paddle.no_grad():
            _, tokens = self._graph(size).begin(batch, sampling, before)
            return answer.bring(tokens, None, len(batch.logit_rows))

    def compute(
        self, batch: StepInput, rows: Array | None = None
    ) -> Callable[[SamplingInput], Callable[[], StepOutput]] | None:
        """Queue a step but for the choice of its tokens, as ``OverlappingRunner`` says."""
        size = self._size(batch, False)
        if rows is not None and not self._is_ready(size):
            return None
        return self._compute(size, batch, rows)

    def _compute(
        self, size: StepSize | None, batch: StepInput, rows: Array | None
    ) -> Callable[[SamplingInput], Callable[[], StepOutput]]:
        model, answer, before = self._open_model(), self._next_answer(), self._continued(rows)
        with paddle.no_grad():
            if size is None:
                placed = StepInput(**self.inputs.place(vars(batch)))
                if before is not None:
                    before.copy(self.card, placed.token_ids)
                logits = model(placed, self.cache)
            else:
                logits, _ = self._graph(size).begin(batch, None, before)
            answer.over.set()  # nobody may ever choose, and the inputs' places are used again

        def choose(sampling: SamplingInput) -> Callable[[], StepOutput]:
            with paddle.no_grad():
                tokens, logprobs = self._choose(logits, sampling)
                return answer.bring(tokens, logprobs, len(batch.logit_rows))

        return choose

    def _continued(self, rows: Array | None) -> Continued | None:
        return None if rows is None else Continued(self.answers[1].tokens, rows)

    def _choose(
        self, logits: Tensor, sampling: SamplingInput
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """As ``choose_tokens``, without waiting for anything; further rows are greedy."""
        missing = len(logits) - len(sampling.temperature)
        given = {name: np.pad(getattr(sampling, name), (0, missing)) for name in DRAWS}
        edits = ("edit_rows", "edit_tokens", "edit_scale", "edit_bias")
        has_edits = bool(len(sampling.edit_rows))
        given |= {name: getattr(sampling, name) for name in edits if has_edits}
        placed = self.choices.place(given)
        edited = edit_logits(logits, *(placed.pop(name) for name in edits)) if has_edits else logits
        draws = bool(sampling.temperature.any())
        tokens = sample(edited, **placed, shortlist=0) if draws else argmax(edited)
        wanted = sampling.num_logprobs
        return tokens, None if wanted < 0 else token_logprobs(logits, tokens, wanted)

    def logits(self, batch: StepInput) -> NDArray[np.float32]:
        """The logits [R, vocab_size] of a step, with no token chosen."""
        model = self._open_model()
        with paddle.no_grad():
            found: NDArray[np.float32] = model(_on_card(batch), self.cache).numpy()
        return found

    def read_bandwidth(self) -> float:
        """Bytes a second that the card reads from its memory, measured now."""
        return read_bandwidth(self.card)

    def operator_times(self, batch: StepInput) -> list[OperatorTime]:
        """Those of a step over this batch, whose cached keys and values may be anything."""
        model = self._open_model()
        placed = _on_card(batch)
        with paddle.no_grad():
            return operator_times(
                lambda: argmax(model(placed, self.cache)), self.card, int(batch.seq_lens.sum())
            )

    def close(self) -> None:
        """Drop the model, the cache and the graphs."""
        self.card.wait()
        self.model = None
        self.graphs.clear()
        self.cache = []

    def _open_model(self) -> Model:
        """The model, whose card is the current one then: another may have been opened since."""
        if self.model is None:
            raise RuntimeError("the runner has been closed")
        if paddle.device.get_device() != self.device:
            paddle.set_device(self.device)
        return self.model

    def _next_answer(self) -> Answer:
        """Where the step that is begun now leaves its tokens. Those of the step before may not have
        been read; what the one before that used is free when it is over.
        """
        self.answers.reverse()
        self.answers[0].over.wait()
        return self.answers[0]

    def _size(self, batch: StepInput, samples: bool) -> StepSize | None:
        """The size of graph for a step, None for none."""
        tokens, sequences = len(batch.token_ids), len(batch.seq_lens)
        if tokens == sequences == len(batch.logit_rows) and tokens <= self.sizes[-1]:
            count = next(size for size in self.sizes if size >= tokens)
            return StepSize(count, count, samples)
        size = prompt_size(tokens, sequences, samples) if self.pads_prompts else None
        if size is None or size in self.seen:
            return size
        self.seen.add(size)  # a size that comes once is not worth recording
        return None

    def _is_ready(self, size: StepSize | None) -> bool:
        """Whether nothing has to be recorded first: a step can go on from one under way."""
        return size is None or size in self.graphs

    def _graph(self, size: StepSize) -> StepGraph:
        if size not in self.graphs:
            model, cache = self._open_model(), self.cache
            if not self.graphs:
                self.note("Recording CUDA graphs as batch sizes come up")
            self.graphs[size] = StepGraph(
                self.card, lambda batch: model(batch, cache), size, self.max_blocks
            )
        return self.graphs[size]


class Answer:
    """Where the tokens of a step come to."""

    def __init__(self, card: Card, most: int) -> None:
        self.card, self.over = card, Mark(card)
        self.here = card.pinned(most * 8).view(np.int64)
        self.tokens: Tensor = None  # on the card

    def bring(
        self, tokens: Tensor, logprobs: tuple[Tensor, Tensor, Tensor] | None, count: int
    ) -> Callable[[], StepOutput]:
        """Queue the copy of the first ``count``; what is returned waits for it."""
        self.tokens = tokens
        if count:
            self.card.copy(self.here.ctypes.data, tokens.data_ptr(), count * 8)
        self.over.set()

        def finish() -> StepOutput:
            self.over.wait()
            found = self.here[:count].copy()
            if logprobs is None:
                return StepOutput(token_ids=found)
            chosen, top, ids = (part.numpy()[:count] for part in logprobs)
            return StepOutput(token_ids=found, logprobs=chosen, top_logprobs=top, top_ids=ids)

        return finish


def _layer_cache(spec: CacheSpec, layer: int, device: int) -> LayerCache:
    """Memory for one layer, as it comes (no operator reads a slot that was not written), and its
    static scales.
    """
    slots = [spec.num_blocks, spec.block_size, spec.num_kv_heads]
    keys, values = (empty([*slots, spec.head_dim], spec.dtype, device) for _ in range(2))
    if not spec.is_scaled:
        return LayerCache(keys=keys, values=values)
    if spec.scales is None:
        key_scales, value_scales = (empty(slots, "float32", device) for _ in range(2))
    else:
        key_scales, value_scales = (place(np.array(part)) for part in spec.scales[layer])
    return LayerCache(keys=keys, values=values, key_scales=key_scales, value_scales=value_scales)


def _on_card(batch: StepInput) -> StepInput:
    return StepInput(**{name: paddle.to_tensor(value) for name, value in vars(batch).items()})
