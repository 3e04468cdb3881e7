"""What core, models, schemes and backends hand to each other: callables with a shape contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qinfer.core.types import (
    Array,
    LayerCache,
    LinearSpec,
    SamplingInput,
    Scheme,
    StepInput,
    StepOutput,
)


class Layer(Protocol):
    """A linear layer with its parameters: [T, in_features] -> [T, out_features].
    It may have ``nbytes``, the bytes it holds, where that differs from what it was built from, and
    ``held`` (``qinfer.cuda_ops.fused.Held``), how its weight is held.
    """

    def __call__(self, x: Array) -> Array:
        """Multiply by the weight and add the bias, if there is one."""


class ExpertLayer(Protocol):
    """The linears of all experts. Like a layer, it may have ``nbytes``."""

    def __call__(self, x: Array, experts: Array) -> Array:
        """Multiply row r with the expert of pair r: x [T * k, in_features], or [T, in_features]
        where the k pairs of a token share a row; experts [T, k] int32. Returns
        [T * k, out_features].
        """


LinearFactory = Callable[[LinearSpec], Layer]


class ModelParts(Protocol):
    """What a model is built from. Each call reads, packs and places that one tensor."""

    def linear(self, spec: LinearSpec) -> Layer:
        """The layer of a spec without experts, in whatever format the quant scheme gave it."""

    def experts(self, spec: LinearSpec) -> ExpertLayer:
        """The same for a spec that has experts."""

    def parameter(self, name: str, dtype: str = "") -> Array:
        """A tensor by its weight rule's target, by default in the compute dtype."""

    def constant(self, array: Array, dtype: str = "") -> Array:
        """A computed numpy table (such as rotary cosines) on the device, by default in
        the compute dtype.
        """


class StoredTensors(Protocol):
    """A checkpoint's tensors by name, as they lie on disk."""

    folder: Path

    def names(self) -> tuple[str, ...]:
        """Every tensor's name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""

    def dtype(self, name: str) -> str:
        """A tensor's dtype, as safetensors names it ("BF16")."""

    def read(self, name: str) -> Array:
        """A tensor as a read-only numpy array."""


class Store(Protocol):
    """How a format writes quantised weights; ``layout`` is "huggingface" (linears [out, in]) or
    "paddle" ([in, out], Paddle's names), ``metadata`` the files' "format"; with ``vectors`` it
    can hold "smooth" for linears where nothing before them can take it.
    """

    layout: str
    metadata: str
    vectors: bool

    def linear(self, name: str, scheme: Scheme, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """The tensors, by name, for the plain weight ``name`` held in these arrays."""

    def cache(self, attention: str, scales: Array) -> Mapping[str, Array]:
        """The tensors, by name, for the static scales [2, num_kv_heads] of the keys and values of
        the attention called ``attention``; none if ``files`` holds them.
        """

    def files(
        self,
        raw: Mapping[str, Any],
        linears: Mapping[str, tuple[Scheme, Mapping[str, Array]]],
        plain: Sequence[str],
        kv_cache: str,
        kv_scales: Mapping[str, Array],
    ) -> Mapping[str, Any]:
        """JSON files by name, config.json among them, made from the original's ``raw``;
        ``linears`` has scheme, scale and input_scale of every quantised weight, ``plain`` the
        names of the linears' other weights. ``kv_cache``: the cache's dtype or "", and its static
        scales by attention, as in ``cache``.
        """


class Model(Protocol):
    """A built decoder."""

    def __call__(self, batch: StepInput, cache: Sequence[LayerCache]) -> Array:
        """Write the new keys and values in place, return logits [R, vocab_size] float32.

        ``batch`` holds device tensors; ``cache`` has an entry for each layer, which attention's
        operators understand.
        """


class Runner(Protocol):
    """A backend's open model: owns the KV cache and runs steps.

    It may have ``logits(batch)``, which runs a step and returns the logits [R, vocab_size] float32
    as numpy instead of choosing tokens; ``qinfer eval`` needs it. And it may have
    ``read_bandwidth()``, the bytes a second its device reads from memory, measured when it is
    called; ``qinfer bench`` holds steps against it. With ``operator_times(batch)``, the
    ``OperatorTime`` of each operator of a step, ``qinfer bench --kernels`` shows them too.
    """

    def step(self, batch: StepInput, sampling: SamplingInput) -> StepOutput:
        """Run one step over numpy inputs and bring the chosen tokens back as numpy."""

    def close(self) -> None:
        """Free the model and the cache."""


@runtime_checkable
class OverlappingRunner(Protocol):
    """A runner whose device computes by itself, so that the engine can work beside it."""

    def begin(
        self, batch: StepInput, sampling: SamplingInput, rows: Array | None = None
    ) -> Callable[[], StepOutput] | None:
        """Queue a step; what is returned waits for it and gives its output.

        With ``rows`` [T] int64 some of ``batch.token_ids`` are not known yet: where ``rows`` is not
        negative the token is what the step begun before chooses in that row. None where the runner
        cannot do that; nothing was queued then. A step may be forgotten without waiting for it.
        """

    def compute(
        self, batch: StepInput, rows: Array | None = None
    ) -> Callable[[SamplingInput], Callable[[], StepOutput]] | None:
        """As ``begin``, of a step whose tokens are chosen by what is not known yet. What is
        returned is to be called with that, before another step is begun; it gives what ``begin``
        gives.
        """
