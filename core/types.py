"""The vocabulary plugins and core share. Standard library only; every class is frozen.

Within one API major these classes only gain fields that have defaults.
Array-valued fields are numpy arrays in core and device tensors inside a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

API_VERSION = "1.3"
"""Version of the plugin contract (major.minor) that this core speaks."""

Array = Any
"""A numpy array, or a tensor of the backend: what it holds is documented per field."""

Kind = Literal["model", "quant", "backend", "observer"]

WeightOp = Literal["copy", "fuse", "split", "transpose", "skip"]


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """What a plugin says of itself, read before it is registered.

    ``api`` is the version of the contract the plugin was written for, such as "1.0".
    ``name`` equals the entry-point name and ``aliases`` the names it has in the kind's
    ``.aliases`` group. ``model_types`` and ``architectures`` (models only) are the values in
    config.json that the plugin can read.
    """

    name: str
    kind: Kind
    api: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    homepage: str = ""
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """The device a run computes on. Memory in bytes, measured when the run starts."""

    kind: str
    index: int = 0
    name: str = ""
    memory_total: int = 0
    memory_free: int = 0
    features: frozenset[str] = frozenset()
    compute_dtypes: tuple[str, ...] = ("float32",)

    @property
    def label(self) -> str:
        """The name it is asked for by: "cpu" or "gpu:N"."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


@dataclass(frozen=True, kw_only=True)
class Support:
    """Whether a plugin can work on a device; if not, why and what to do about it."""

    ok: bool
    reason: str = ""
    remedy: str = ""


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


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """One linear layer, as a model asks for it and a quant scheme sees it.

    ``parts`` are the output widths of the projections fused into it (q, k, v or gate, up);
    they add up to ``out_features``. With ``experts`` it is that many linears of this shape
    without bias, one of which each row is multiplied with: their weights lie one below the
    other, [experts * out_features, in_features], and are packed as one. Two fields say where a
    scaling of this linear's input can be moved to: ``norm`` is the target of the norm weight whose
    output goes into this linear and nothing else, ``scaled_by`` the linear whose last part's
    outputs are factors of the inputs.
    """

    name: str
    role: str
    in_features: int
    out_features: int
    bias: bool = False
    layer: int | None = None
    parts: tuple[int, ...] = ()
    experts: int = 0
    norm: str = ""
    scaled_by: str = ""

    @property
    def rows(self) -> int:
        """Rows of the weight: the outputs of all experts together."""
        return max(self.experts, 1) * self.out_features


@dataclass(frozen=True, kw_only=True)
class WeightRule:
    """How one parameter of the model is made from tensors of a checkpoint.

    op        source -> target
    copy      one tensor as it is
    fuse      several, concatenated along axis 0 (``sizes``: rows of each)
    split     rows ``start : start + shape[0]`` of one tensor (``sizes``: its rows)
    transpose one tensor, axes reversed
    skip      tensors a checkpoint may hold and the model does not use; ``source`` are globs

    ``shape`` is the target's. ``linear`` marks a weight of a linear layer: [out, in] here and in
    Hugging Face checkpoints, [in, out] in Paddle ones. Several rules for one target are
    alternatives (another naming): the first whose sources are all there is used.
    """

    target: str
    source: tuple[str, ...]
    op: WeightOp = "copy"
    shape: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    start: int = 0
    linear: bool = False


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one linear's weight and input are represented.

    ``weight_scale`` and ``input_scale``: "none", "channel" (one per output), "token", "tensor",
    "group" (of ``group_size`` inputs) or "block" (of ``group_size`` inputs and outputs). ``parts``:
    the schemes of projections that are fused without having one scheme.
    """

    name: str
    weight_dtype: str
    weight_scale: str = "none"
    input_dtype: str = ""
    input_scale: str = "none"
    group_size: int = 0
    parts: tuple[Scheme, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """A scheme's decision for one model: linear name -> scheme, and why others are left out.

    A linear in ``skipped`` (name -> reason) keeps the model's own precision; its entry in
    ``by_layer`` says which that is. ``kv_cache`` is a dtype, or "" for the model's own precision;
    ``kv_scales`` its static scales, as ``CacheSpec`` has them.
    """

    by_layer: Mapping[str, Scheme]
    kv_cache: str = ""
    kv_scales: Array | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """The paged KV cache: a ``LayerCache`` for each layer.

    ``dtype`` is float32, float16, bfloat16, or int8 or float8_e4m3fn, whose numbers stand for
    themselves times a scale. ``scales``: static ones of keys and values, a numpy array
    [num_layers, 2, num_kv_heads] float32; None for one of each token and head, found on the fly.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"
    block_size: int = 16
    num_blocks: int = 0
    scales: Array | None = field(default=None, compare=False)

    @property
    def is_scaled(self) -> bool:
        """Whether a number stands for itself times a scale."""
        return self.dtype in ("int8", "float8_e4m3fn")

    @property
    def bytes_per_block(self) -> int:
        """Bytes one block takes in all layers, keys and values together."""
        item = {"float32": 4, "bfloat16": 2, "float16": 2}.get(self.dtype, 1)
        row = self.head_dim * item + 4 * (self.is_scaled and self.scales is None)
        return self.num_layers * 2 * self.block_size * self.num_kv_heads * row


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One layer's keys and values, [num_blocks, block_size, num_kv_heads, head_dim] tensors.

    Scales are float32: [num_blocks, block_size, num_kv_heads], written with the numbers, or static
    ones [num_kv_heads], or None where ``CacheSpec`` has none. The order inside a block belongs to
    the operators that write and read it.
    """

    keys: Array
    values: Array
    key_scales: Array | None = None
    value_scales: Array | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the user asked for, with names resolved. Memory in bytes; a size of 0 is chosen, by the
    device (``core/engine/sizing.py``); the quant scheme "auto" is the checkpoint's own.
    ``operators``: the version of them that an exported model needs, "" where the backend chooses.
    ``random_weights``: drawn, not read from the folder.
    """

    model: str = ""
    plugin: str = ""
    quant: str = "auto"
    backend: str = "dynamic"
    observers: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    kv_cache_memory: int = 0
    kv_cache_dtype: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_batch_tokens: int = 0
    block_size: int = 0
    require_kernels: bool = False
    operators: str = ""
    random_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class OperatorBuild:
    """A backend's compiled operators: the library, whether it is there, and what makes it.
    ``reason``: why it has to be made, where that is known.

    ``build`` compiles unless that has been done, with True also then. It reports on stderr and
    raises Unsupported with the compiler's words.
    """

    library: Path
    is_built: bool
    build: Callable[[bool], Path]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportNeeds:
    """What an exported program needs where it runs: a version of the operators ("reference" needs
    nothing compiled), and facts about them that must be the same there.
    """

    operators: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SamplingInput:
    """How to choose one token for each of R logit rows (all 1-D, float32 or int64).

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off; ``uniform`` is
    the row's random number in [0, 1). The edits are (row, token) pairs, each pair once: a positive
    logit is divided and a negative one multiplied by ``edit_scale``, then ``edit_bias`` is added.
    ``num_logprobs`` is -1 for none, 0 for the chosen token's, k for the k best as well.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    uniform: Array
    edit_rows: Array
    edit_tokens: Array
    edit_scale: Array
    edit_bias: Array
    num_logprobs: int = -1


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One step's ragged batch: T new tokens of S sequences, R of whose logits are wanted.

    token_ids [T], positions [T]: int64; a position is a row of the model's position tables
    (the token's place in its sequence, unless ``core.rotary.first_row`` says otherwise).
    query_starts [S + 1], seq_lens [S] (cached and new tokens): int32. slot_mapping [T] int64:
    block * block_size + offset where each new key and value goes. block_tables [S, W] int32, W
    at least the most blocks any sequence has; entries past a sequence's end are not read.
    logit_rows [R] int64: indices into the T tokens, all of them in order where R is T.
    """

    token_ids: Array
    positions: Array
    query_starts: Array
    seq_lens: Array
    slot_mapping: Array
    block_tables: Array
    logit_rows: Array


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The chosen tokens [R] int64 and, where asked for, log-probabilities of the unedited
    distribution: of the chosen token [R], of the best tokens [R, k] with their ids [R, k].
    """

    token_ids: Array
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """An operator's part in a step: ``calls`` of it over the same ``shapes`` (of its result and of
    its largest argument), the ``seconds`` one takes, and the bytes it has to read and write.
    """

    name: str
    shapes: str
    calls: int
    seconds: float
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class LoadStats:
    """What loading a model took: seconds, and bytes of parameters held."""

    seconds: float
    parameter_bytes: int
    num_parameters: int
    layers_by_scheme: Mapping[str, int]
    skipped: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """One engine step: token counts, seconds, and how full the KV cache is (0 to 1)."""

    prefill_tokens: int
    decode_tokens: int
    seconds: float
    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, kw_only=True)
class RequestStats:
    """One finished request. Seconds count from the moment the request was added."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    queue_seconds: float
    first_token_seconds: float
    total_seconds: float
    preemptions: int
