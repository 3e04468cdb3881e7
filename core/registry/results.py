"""What a hook's result must fulfil beyond its type; the error of each check names the plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qinfer.core.registry.bound_hook import BoundHook, describe
from qinfer.core.stored import StoredWeights
from qinfer.core.types import Array, LinearSpec, QuantPlan, Scheme


def check_layers(hook: BoundHook, layers: Sequence[LinearSpec]) -> None:
    """Names are unique, parts add up, and experts have no bias."""
    seen: set[str] = set()
    for spec in layers:
        if spec.name in seen:
            raise hook.wrong(f'two layers called "{spec.name}"')
        if spec.parts and sum(spec.parts) != spec.out_features:
            parts = f"parts {spec.parts} that do not add up to {spec.out_features}"
            raise hook.wrong(f'for "{spec.name}" {parts}')
        if spec.experts and spec.bias:
            raise hook.wrong(f'for "{spec.name}" experts with a bias, which no operator adds')
        seen.add(spec.name)


def check_plan(hook: BoundHook, plan: QuantPlan, layers: Sequence[LinearSpec]) -> None:
    """There is a scheme for every layer, and nothing about others."""
    names = {spec.name for spec in layers}
    for what, wrong in (
        ("no scheme for", names - set(plan.by_layer)),
        ("schemes for the unknown", set(plan.by_layer) - names),
        ("reasons to skip the unknown", set(plan.skipped) - names),
    ):
        if wrong:
            raise hook.wrong(f"{what} {', '.join(sorted(wrong)[:3])}")
    for name, scheme in plan.by_layer.items():
        if not isinstance(scheme, Scheme):
            raise hook.wrong(f'{describe(scheme)} for "{name}" where Scheme is needed')


def check_packed(hook: BoundHook, params: Mapping[str, Array]) -> None:
    """A packed weight is arrays by name, none of which is called "bias"."""
    from numpy import ndarray  # loaded by then; importing it here keeps start-up short
    from paddle import Tensor

    for name, array in params.items():
        is_array = isinstance(array, (ndarray, Tensor))
        if not isinstance(name, str) or name == "bias" or not is_array:
            raise hook.wrong(f"{name!r}: {describe(array)} where names (not bias) of arrays belong")


def check_stored(
    hook: BoundHook, stored: StoredWeights, weights: Mapping[str, tuple[int, int]]
) -> None:
    """Each stored linear takes the place of a plain weight of its shape."""
    for name, linear in stored.linears.items():
        if weights.get(name) != linear.shape:
            raise hook.wrong(f"{name} of {linear.shape} where {weights.get(name)} is needed")
