"""qinfer: inference for the Qwen family on PaddlePaddle, built from plugins.

Importing this package is cheap: neither numpy nor paddle is loaded until one
of the names below is used.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own would have to be imported, and Ctrl-C might hit that
if TYPE_CHECKING:
    from typing import Any

    from qinfer.core.llm import LLM
    from qinfer.core.params import SamplingParams
    from qinfer.core.specs import hookimpl
    from qinfer.core.types import PluginInfo

__all__ = ["LLM", "PluginInfo", "SamplingParams", "__version__", "hookimpl"]

_HOMES = {
    "LLM": "qinfer.core.llm",
    "SamplingParams": "qinfer.core.params",
    "hookimpl": "qinfer.core.specs",
    "PluginInfo": "qinfer.core.types",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qinfer' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
