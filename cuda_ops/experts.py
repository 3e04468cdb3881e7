"""Mixture of experts: routing, products with the chosen experts' weights, and the weighted sum.

The weights of all E experts come as one weight [E * out, in], quantised as any other. A product
multiplies pair (t, j), the j-th choice of token t, with the rows of expert ``experts[t, j]``. Its
rows are those pairs, [T * k, …], whatever the choices are; its work grows with the experts used,
not with those there are. Its x has a row for each pair, or one for each token.
"""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle import Tensor
from paddle.nn.functional import sigmoid, softmax

from qinfer.cuda_ops import linear as single
from qinfer.cuda_ops.table import REFERENCE, operator


@operator
def route(logits: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """The ``top_k`` likeliest experts of each token and their weights, for logits [T, E].

    Softmax in float32 over all experts, then the best k, equal ones by their number; with
    ``normalise`` their weights are divided by their sum. Returns weights [T, k] float32 and
    experts [T, k] int32.
    """
    probabilities = softmax(logits.astype("float32"), axis=-1)
    order = paddle.argsort(probabilities, axis=-1, descending=True, stable=True)[:, :top_k]
    weights = paddle.take_along_axis(probabilities, order, axis=1)
    if normalise:
        weights = weights / weights.sum(axis=-1, keepdim=True)
    return weights, order.astype("int32")


@operator
def mix_experts(
    routed: Tensor, weights: Tensor, shared: Tensor | None, gate: Tensor | None
) -> Tensor:
    """The weighted sum of each token's experts: routed [T * k, H], weights [T, k] -> [T, H].

    A shared expert's outputs [T, H] are added, times the sigmoid of ``gate`` [T, 1].
    """
    top_k, width = weights.shape[1], routed.shape[1]
    rows = routed.reshape([-1, top_k, width]) * weights.unsqueeze(-1).astype(routed.dtype)
    total = rows.sum(axis=1)
    return total if shared is None or gate is None else total + sigmoid(gate) * shared


@operator
def arrange_experts(weight: Tensor, experts: int, dtype: str) -> Tensor:
    """A weight [E * out, in] in this version's order, as ``arrange`` for one expert alone.

    Reference: [E, in, out].
    """
    is_e4m3 = weight.dtype == paddle.float8_e4m3fn  # which Paddle neither stacks nor slices
    source = weight.view("int8") if is_e4m3 else weight
    arranged = _stack(source, experts, lambda part: single.arrange.versions[REFERENCE](part, dtype))
    return arranged.view("float8_e4m3fn") if is_e4m3 else arranged


@operator
def expert_linear(x: Tensor, weight: Tensor, experts: Tensor, dtype: str, out: int) -> Tensor:
    """An arranged float weight: [T * k or T, in] -> [T * k, out]; experts [T, k].

    ``dtype``: the weight's before it was arranged. ``out``: outputs of one expert.
    """
    count = weight.shape[0]
    return _each(x, experts, count, out, lambda rows, e: paddle.matmul(rows, weight[e]))


@operator
def expert_linear_int8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    """Weight-only int8 as ``linear_int8``, for each expert; scale [E * out]."""
    product, scales = single.linear_int8.versions[REFERENCE], scale.reshape([-1, out])
    return _each(
        x, experts, weight.shape[0], out, lambda rows, e: product(rows, weight[e], scales[e], None)
    )


@operator
def expert_linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    """e4m3 weights and activations as ``linear_fp8``, for each expert; scale [E * out]."""
    product, scales = single.linear_fp8.versions[REFERENCE], scale.reshape([-1, out])
    codes = single.e4m3_codes(weight)
    return _each(
        x, experts, weight.shape[0], out, lambda rows, e: product(rows, codes[e], scales[e], None)
    )


@operator
def arrange_experts_int4(weight: Tensor, scale: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """An int4 weight [E * out, in] and its scale [E * out, groups], as ``arrange_int4``.

    Reference: [E, in, out] and [E, groups, out].
    """
    return _stack(weight, experts, lambda part: part.T), _stack(scale, experts, lambda part: part.T)


@operator
def expert_linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, experts: Tensor, out: int
) -> Tensor:
    """Weight-only int4 as ``linear_int4``, for each expert; both arranged."""
    product = single.linear_int4.versions[REFERENCE]
    return _each(
        x,
        experts,
        weight.shape[0],
        out,
        lambda rows, e: product(rows, weight[e], scale[e], None, out),
    )


@operator
def each_expert(
    x: Tensor, experts: Tensor, count: int, out: int, product: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """``product(rows, e)`` of the rows of each of ``count`` experts: for any format of weights.

    x [T * k or T, in], experts [T, k] -> [T * k, out].
    """
    return _each(x, experts, count, out, product)


def _stack(weight: Tensor, experts: int, arrange: Callable[[Tensor], Tensor]) -> Tensor:
    """Each expert's rows arranged, one expert at a time."""
    rows = weight.shape[0] // experts
    first = arrange(weight[:rows])
    result = paddle.empty([experts, *first.shape], first.dtype)
    for expert in range(experts):
        result[expert] = arrange(weight[expert * rows : (expert + 1) * rows])
    return result


def _each(
    x: Tensor, experts: Tensor, count: int, out: int, product: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The rows of each of ``count`` experts, multiplied together and put back in their places."""
    chosen = experts.flatten()
    pairs = chosen.shape[0] if paddle.in_dynamic_mode() else paddle.shape(chosen)[0]
    repeats = paddle.shape(chosen)[0] // paddle.shape(x)[0]  # pairs that read the same row
    result = paddle.zeros([pairs, out], x.dtype)
    for expert in _used(chosen, count):
        places = paddle.nonzero(chosen == expert).flatten()
        rows = product(paddle.gather(x, places // repeats), expert)
        result = paddle.scatter(result, places, rows, overwrite=True)
    return result


def _used(chosen: Tensor, count: int) -> list[int]:
    """The experts to multiply with: in a program all, as the choice is not known yet."""
    return sorted(set(chosen.tolist())) if paddle.in_dynamic_mode() else list(range(count))
