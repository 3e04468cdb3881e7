"""Keys of config.json nobody asked for: those that may change the mathematics are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qinfer.core.config.check import ConfigChecker, show

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Keys that change the mathematics, and the values with which they don't.
    "partial_rotary_factor": (1, 1.0),
    "rotary_pct": (1, 1.0),
    "rope_scaling_type": ("default",),
    "rope_scaling_factor": (1, 1.0),
    "scale_attn_weights": (True,),
}

MATHEMATICAL = re.compile(
    r"rope|rotary|alibi|ntk|logn|attn|attention|head|window|norm|bias|expert|moe|router|mlp"
    r"|scal|multiplier|softcap|clip|residual|position|activation|gate|shared|sparse"
)
"""What the names of such keys have in them, in the families transformers knows."""

HARMLESS = re.compile(
    r"_.*"
    r"|.*dropout.*"
    r"|output_(attentions|hidden_states|router_logits)|router_aux_loss_coef"
    r"|attn_implementation|use_flash_attn|use_flash_attention.*|use_fused_.*|fused?_.*"
    r"|tensor_parallel.*|pipeline_parallel.*|sequence_parallel|sep_parallel.*|recompute.*"
    r"|sliding_window|max_window_layers"
)
"""Names that match nevertheless: training, parallelism, how to compute rather than what. Windows
are read where ``use_sliding_window`` turns them on."""

UNSET: tuple[Any, ...] = (None, False, 0, "", [], {})


def refuse_unknown(check: ConfigChecker) -> None:
    """Add a problem for every set key that may change the result and that nobody has read."""
    for key, value in check.raw.items():
        if key in check.seen or value in UNSET:
            continue
        if key in NEUTRAL:
            if value not in NEUTRAL[key]:
                check.add(f"{key} = {show(value)}: not supported")
        elif MATHEMATICAL.search(key) and not HARMLESS.fullmatch(key):
            check.add(f"{show(key)} = {show(value)}: not understood in this family")


def refuse_other(check: ConfigChecker, fixed: Mapping[str, Any]) -> None:
    """Add a problem for every key that says other than the family's only value."""
    for key, only in fixed.items():
        value = check.written(key)
        if value is not None and (
            value != only or isinstance(value, bool) != isinstance(only, bool)
        ):
            name = check.name(key)
            check.add(f"{name}: is always {show(only)} in this family, found {show(value)}")
