"""Linear layers, and how a checkpoint's tensors become their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WeightOp = Literal["copy", "fuse", "split", "transpose", "skip"]


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
