"""The static backend: the model as one Paddle program, exported once and run anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qinfer.core.errors import Unsupported
from qinfer.core.protocols import Model
from qinfer.core.specs import hookimpl
from qinfer.core.types import (
    CacheSpec,
    ExportNeeds,
    ModelConfig,
    PluginInfo,
    RunConfig,
)
from qinfer.cuda_ops.arrangement import SOURCES, facts
from qinfer.cuda_ops.record import set_recorder
from qinfer.cuda_ops.table import REFERENCE, use, version_in_use
from qinfer.plugins.backends.dynamic import Dynamic
from qinfer.plugins.backends.program import StaticModel, save


class Static(Dynamic):
    """Runs what ``dynamic`` does with a program in the model's place. The program calls the same
    operators, so a step of it can be recorded as well, on a card as a CUDA graph.
    """

    info = PluginInfo(
        name="static",
        kind="backend",
        api="1.3",
        summary="an exported program: loads without plugin and checkpoint",
    )

    @hookimpl
    def configure(self, run: RunConfig) -> None:
        """Choose the operators: those an exported model needs, or as ``dynamic`` does."""
        if run.operators == REFERENCE:
            if run.require_kernels:
                raise Unsupported(
                    "the exported model computes with the reference operators",
                    remedy="Leave out --require-kernels, or export the checkpoint again where "
                    "there is a C++ compiler.",
                )
            use(REFERENCE)
            set_recorder(None)
            self.operators = "operators: reference (the exported program's)"
            return
        super().configure(run)
        if run.operators not in ("", version_in_use()):
            raise Unsupported(
                f"the exported model needs {run.operators} operators, and here there are others: "
                f"{self.operators.removeprefix('operators: ')}",
                remedy="Run qinfer doctor to see what is missing, or export the model here.",
            )

    @hookimpl
    def plan_export(self, run: RunConfig) -> ExportNeeds:
        """The version of the operators in use, and what weights arranged for it depend on."""
        return ExportNeeds(operators=version_in_use(), facts=facts())

    @hookimpl
    def export(
        self, model: Model, config: ModelConfig, cache: CacheSpec, run: RunConfig, path: Path
    ) -> Path:
        """Write program.json and parameters.safetensors."""
        save(model, cache, path)
        return path

    @hookimpl
    def open_export(
        self, needs: ExportNeeds, config: ModelConfig, cache: CacheSpec, run: RunConfig, path: Path
    ) -> StaticModel:
        """Load the program over mapped parameters."""
        _require(needs.facts, path)
        return StaticModel(path, run)


def _require(needed: Mapping[str, str], path: Path) -> None:
    """Refuse a program of other operators, or of operators that want weights in another order."""
    here = facts()
    other = [fact for fact, value in needed.items() if here.get(fact) != value]
    if SOURCES in other:
        raise Unsupported(
            f"{path} was exported for other operators: {SOURCES} {needed[SOURCES]}, and here they "
            f"are {here.get(SOURCES, 'none')}",
            remedy="Export the checkpoint again with this version of qinfer, or run the folder "
            "with the version that qinfer info shows.",
        )
    if other:
        raise Unsupported(
            f"{path} was exported on another kind of processor, whose operators take weights in "
            f"another order than this one's ({', '.join(other)})",
            remedy="Export the checkpoint again on this computer, or with "
            "QINFER_OPERATORS=reference for any computer.",
        )
