"""What to quantise to and how: the choices of ``qinfer quantize``, and which exclude others."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from qinfer.core.errors import UsageError
from qinfer.core.loading import KV_CACHE_DTYPES
from qinfer.core.quantize.linear import Recipe
from qinfer.core.quantize.rounding import RANGES
from qinfer.core.types import LinearSpec, Scheme

SCALING, ROUNDING = ("smoothquant", "awq"), ("gptq",)
INT4 = {
    "wint4": (64, False),
    "wint4-g128": (128, False),
    "wint4-channel": (-1, False),
    "wint4-zp": (64, True),
    "wint4-g128-zp": (128, True),
    "wint4-channel-zp": (-1, True),
}
"""Inputs that share a scale, -1 for all of a channel, and whether they have a zero point too."""

TARGETS = ("wint8", *INT4, "a8w8", "a8w8c8", "fp8")
FORMATS = ("compressed-tensors", "paddlenlp")
ACTIVATIONS = ("token", "tensor")
WEIGHT_ONLY = ("wint8", *INT4)


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """``method``: names with a plus between, at most one each of SCALING, ROUNDING and RANGES; ""
    chooses. ``activations``: "token" scales each token on the fly, "tensor" has one scale from the
    calibration data. ``group_size`` and ``zero_points`` change what INT4 says of wint4. ``skip``:
    patterns of linears' names that stay as they are, with a comma between. ``tokens``: of the
    calibration data, at most; ``window``: the longest sequence.
    """

    model: str = ""
    plugin: str = ""
    quant: str = "a8w8"
    method: str = ""
    format: str = "compressed-tensors"
    activations: str = ""
    group_size: int = 0
    zero_points: bool = False
    kv_cache_dtype: str = "auto"
    skip: str = ""
    calib: Path | None = None
    tokens: int = 8192
    window: int = 512
    dtype: str = "auto"
    threads: int = 0

    def check(self) -> None:
        """Raise UsageError for a name that is unknown and for choices that exclude each other."""
        for name, choices in (
            ("quant", TARGETS),
            ("format", FORMATS),
            ("activations", ("", *ACTIVATIONS)),
            ("kv_cache_dtype", tuple(KV_CACHE_DTYPES)),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise UsageError(
                    f"unknown --{name.replace('_', '-')} {getattr(self, name)!r}",
                    remedy=f"Use one of {known}.",
                )
        kinds = (SCALING, ROUNDING, RANGES)
        unknown = self.methods - {name for kind in kinds for name in kind}
        if unknown or any(len(self.methods & {*kind}) > 1 for kind in kinds):
            raise UsageError(
                f"--method {self.method!r} is none, or two that exclude each other",
                remedy=f"Use one of {', '.join(SCALING)}, {', '.join(ROUNDING)}, one of "
                f"{', '.join(RANGES)}, or several with a plus between: smoothquant+gptq+mse.",
            )
        self._check_weight_only()
        if self.group_size < -1:
            raise UsageError(
                f"--group-size {self.group_size} is no number of inputs",
                remedy="Give 32, 64 or 128, or -1 for a scale a channel.",
            )
        if self.zero_points and self.quant not in INT4:
            raise UsageError(
                f"{self.quant} has no zero points",
                remedy="Leave --zero-points out, or --quant wint4.",
            )
        if (self.zero_points or self.group_size) and self.quant in {*INT4} - {"wint4"}:
            raise UsageError(
                f"{self.quant} says already what --group-size and --zero-points are for",
                remedy="Leave them out, or use --quant wint4.",
            )

    def _check_weight_only(self) -> None:
        weight_only = self.quant in WEIGHT_ONLY
        if "smoothquant" in self.methods and weight_only:
            raise UsageError(
                f"smoothquant makes activations easier to round, and {self.quant} rounds none",
                remedy="Use --method awq, gptq or mse.",
            )
        if self.format == "paddlenlp" and (weight_only or self.activations == "token"):
            raise UsageError(
                "PaddleNLP's format holds a8w8 and fp8 with a scale for each activation tensor",
                remedy="Use --format compressed-tensors, or --quant a8w8 with --activations "
                "tensor.",
            )
        if self.format == "paddlenlp" and self.kv_cache not in ("", "int8"):
            raise UsageError(
                "PaddleNLP's format holds no KV cache in fp8",
                remedy="Use --format compressed-tensors, or --kv-cache-dtype int8.",
            )
        if self.activations == "tensor" and weight_only:
            raise UsageError(f"{self.quant} has no activation scales", remedy="Leave it out.")

    @property
    def methods(self) -> frozenset[str]:
        """The names in ``method``, or what usually serves ``quant`` best."""
        usual = "smoothquant+gptq" if self.quant in ("a8w8", "a8w8c8") else "gptq"
        return frozenset((self.method or usual).split("+"))

    @property
    def groups(self) -> tuple[int, bool]:
        """As INT4 has them, changed by what was asked for besides."""
        size, has_zero = INT4.get(self.quant, (0, False))
        return self.group_size or size, self.zero_points or has_zero

    @property
    def kv_cache(self) -> str:
        """The dtype that the KV cache gets static scales for, "" for none."""
        own = "int8" if self.quant == "a8w8c8" else ""
        return KV_CACHE_DTYPES[self.kv_cache_dtype] or own

    def skips(self, name: str) -> bool:
        """Whether a linear is left as it is because the user said so."""
        patterns = [part.strip() for part in self.skip.split(",") if part.strip()]
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def recipe(self, spec: LinearSpec, scheme: Scheme, *, is_held: bool) -> Recipe:
        """How a linear is quantised; ``is_held``: what could take a scaling of its input in is
        quantised, or there is nothing.
        """
        is_fp8 = self.quant == "fp8"
        may_scale = bool(spec.norm or spec.scaled_by)
        if self.format == "paddlenlp":  # which has vectors of their own for int8
            may_scale = bool(spec.norm) or (not is_fp8 and spec.role in ("o", "down"))
        return Recipe(
            scheme=scheme,
            methods=self.methods,
            zero_points=self.groups[1],
            may_scale=may_scale and is_held and not spec.experts,
            per_tensor=spec.parts if is_fp8 and self.format == "paddlenlp" else (),
        )

    def scheme(self, inputs: int) -> Scheme | None:
        """The scheme of a linear with that many inputs; None if they make no whole groups."""
        if self.quant in INT4:
            size, _ = self.groups
            size = inputs if size == -1 else size
            if inputs % size:
                return None
            return Scheme(name="wint4", weight_dtype="int4", weight_scale="group", group_size=size)
        held = "float8_e4m3fn" if self.quant == "fp8" else "int8"
        if self.quant == "wint8":
            return Scheme(name="wint8", weight_dtype=held, weight_scale="channel")
        static = self.activations == "tensor" or self.format == "paddlenlp"
        return Scheme(
            name="fp8" if self.quant == "fp8" else "a8w8",
            weight_dtype=held,
            weight_scale="channel",
            input_dtype=held,
            input_scale="tensor" if static else "token",
        )
