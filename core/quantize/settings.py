"""What to quantise to and how: the choices of ``qinfer quantize``, and which exclude others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qinfer.core.errors import UsageError
from qinfer.core.types import LinearSpec, Scheme

SCALING, ROUNDING = ("smoothquant", "awq"), ("absmax", "mse", "gptq")
TARGETS = ("wint8", "wint4", "a8w8", "fp8")
FORMATS = ("compressed-tensors", "paddlenlp")
ACTIVATIONS = ("token", "tensor")


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """``method``: one of SCALING, one of ROUNDING, or both with a plus between; "" chooses.
    ``activations``: "token" scales each token on the fly, "tensor" has one scale from the
    calibration data. ``group_size``: inputs that share a scale in wint4; -1 for all of a channel.
    ``tokens``: of the calibration data, at most; ``window``: the longest sequence.
    """

    model: str = ""
    plugin: str = ""
    quant: str = "a8w8"
    method: str = ""
    format: str = "compressed-tensors"
    activations: str = ""
    group_size: int = 64
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
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise UsageError(
                    f"unknown --{name} {getattr(self, name)!r}", remedy=f"Use one of {known}."
                )
        unknown = self.methods - {*SCALING, *ROUNDING}
        if unknown or any(len(self.methods & {*kind}) > 1 for kind in (SCALING, ROUNDING)):
            raise UsageError(
                f"--method {self.method!r} is none, or two that exclude each other",
                remedy=f"Use one of {', '.join(SCALING)}, one of {', '.join(ROUNDING)}, or both "
                "with a plus between: smoothquant+gptq.",
            )
        weight_only = self.quant in ("wint8", "wint4")
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
        if self.activations == "tensor" and weight_only:
            raise UsageError(f"{self.quant} has no activation scales", remedy="Leave it out.")
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"--group-size {self.group_size}: give 64, 128 or -1")

    @property
    def methods(self) -> frozenset[str]:
        """The names in ``method``, or what usually serves ``quant`` best."""
        usual = "smoothquant+gptq" if self.quant == "a8w8" else "gptq"
        return frozenset((self.method or usual).split("+"))

    @property
    def per_tensor(self) -> bool:
        """Whether each projection has one scale for its weight: PaddleNLP's fp8."""
        return self.format == "paddlenlp" and self.quant == "fp8"

    def may_scale(self, spec: LinearSpec) -> bool:
        """Whether scaling a linear's input can be written down: moved into the norm or the linear
        before it, or as a vector of its own.
        """
        if self.format == "paddlenlp":
            return bool(spec.norm) or self.quant == "a8w8"
        return bool(spec.norm or spec.scaled_by)

    def scheme(self, inputs: int) -> Scheme | None:
        """The scheme of a linear with that many inputs; None if they make no whole groups."""
        if self.quant == "wint4":
            size = inputs if self.group_size == -1 else self.group_size
            if inputs % size:
                return None
            return Scheme(name="wint4", weight_dtype="int4", weight_scale="group", group_size=size)
        held = "float8_e4m3fn" if self.quant == "fp8" else "int8"
        if self.quant == "wint8":
            return Scheme(name="wint8", weight_dtype=held, weight_scale="channel")
        static = self.activations == "tensor" or self.format == "paddlenlp"
        return Scheme(
            name=self.quant,
            weight_dtype=held,
            weight_scale="channel",
            input_dtype=held,
            input_scale="tensor" if static else "token",
        )
