"""What the GPU operators do not compute, said before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

from qinfer.core.errors import Unsupported
from qinfer.core.types import DeviceInfo, LinearSpec, ModelConfig


def choose_dtypes(own: str, asked: str, device: DeviceInfo) -> tuple[str, str]:
    """What parameters are rounded to and what is computed in, from the checkpoint's own dtype and
    the one asked for. Raises Unsupported for one a GPU does not compute in.
    """
    dtype = own if asked == "auto" else asked
    if device.kind == "cpu":
        return dtype, device.compute_dtypes[0]
    if dtype in device.compute_dtypes:
        return dtype, dtype
    if asked != "auto":
        known = " or ".join(device.compute_dtypes)
        raise Unsupported(
            f"the GPU operators do not compute in {dtype}",
            remedy=f"Use --dtype {known}, or --device cpu.",
        )
    return device.compute_dtypes[0], device.compute_dtypes[0]


def check_sizes(config: ModelConfig, linears: Sequence[LinearSpec]) -> None:
    """Raise Unsupported for a model with sizes that the GPU operators do not compute."""
    known = (64, 128) if any(config.windows) else (16, 32, 64, 128, 256)
    odd = next((spec for spec in linears if spec.in_features % 16), None)
    if config.head_dim not in known:
        where = "with a sliding window " if any(config.windows) else ""
        said = f"attention {where}knows heads of {', '.join(map(str, known))} numbers, "
        said += f"and this model's have {config.head_dim}"
    elif odd is not None:
        said = f"products have inputs in sixteens, and {odd.name} has {odd.in_features}"
    else:
        return
    raise Unsupported(
        f"the GPU operators do not compute this model: {said}", remedy="Use --device cpu."
    )
