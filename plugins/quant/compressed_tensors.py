"""Checkpoints in the compressed-tensors format, as llm-compressor writes and vLLM reads them.

Format: the quantization_config of https://github.com/vllm-project/compressed-tensors: groups of
targets with a scheme each, and names that are ignored; int-quantized, float-quantized,
naive-quantized and pack-quantized tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from qinfer.core.checkpoint.stored_arrays import read_floats
from qinfer.core.errors import BadCheckpoint, Unsupported
from qinfer.core.protocols import StoredTensors
from qinfer.core.specs import hookimpl
from qinfer.core.stored import StoredWeights
from qinfer.core.types import Array, ModelConfig, PluginInfo
from qinfer.plugins.quant.compressed_tensors_store import CompressedStore
from qinfer.plugins.quant.compressed_tensors_weights import read_linear
from qinfer.plugins.quant.kv_scales import named, stack
from qinfer.plugins.quant.stored_format import Shapes, StoredFormat

UNUSED = ("*.k_scale", "*.v_scale", "*.q_scale", "*.output_scale")
"""Scales of attention's tensors; those of queries and outputs are not used."""

CACHE_SCALE = re.compile(r"\.(\d+)\.(?:self_attn|attn)\.(?:attn\.|[kv]_proj\.)?([kv])_scale$")


class CompressedTensors(StoredFormat):
    """W8A8 (int8 and e4m3, static and dynamic), W8A16 and W4A16, mixed as config.json says."""

    info = PluginInfo(
        name="compressed-tensors",
        kind="quant",
        api="1.2",
        summary="reads checkpoints in the compressed-tensors format",
    )
    methods = ("compressed-tensors",)

    @hookimpl
    def open_store(self) -> CompressedStore:
        """What writes this format."""
        return CompressedStore()

    def find(
        self,
        config: ModelConfig,
        said: Mapping[str, Any],
        weights: Shapes,
        checkpoint: StoredTensors,
    ) -> StoredWeights:
        """Every weight that a group targets and none of the ignored names."""
        groups = said.get("config_groups")
        ignored = said.get("ignore") or []
        if not isinstance(groups, Mapping) or not groups or not isinstance(ignored, list):
            raise BadCheckpoint(
                f'{checkpoint.folder}/config.json: quantization_config has no "config_groups", '
                'or "ignore" is no list',
                remedy="Take config.json again from where the checkpoint was published.",
            )
        present = set(checkpoint.names())
        linears = {}
        for name, shape in weights.items():
            module = name.removesuffix(".weight")
            if not {name, f"{module}.weight_packed"} & present:
                continue  # another naming, or a weight that another tensor holds
            group = None if _matches(ignored, module) else _group(groups, module)
            if group is not None:
                linears[name] = read_linear(group, module, shape, checkpoint)
        kv_cache, kv_scales = _kv_cache(config, said.get("kv_cache_scheme"), checkpoint)
        return StoredWeights(linears=linears, unused=UNUSED, kv_cache=kv_cache, kv_scales=kv_scales)


def _kv_cache(
    config: ModelConfig, scheme: Any, checkpoint: StoredTensors
) -> tuple[str, Array | None]:
    """The dtype of kv_cache_scheme, and the scales unless they are found on the fly. Raises
    Unsupported for a kind that no cache has.
    """
    if not scheme:
        return "", None
    kinds = {"float": "float8_e4m3fn", "int": "int8"}
    said = scheme if isinstance(scheme, Mapping) else {}
    if said.get("num_bits") == 8 and said.get("type") in kinds and said.get("symmetric", True):
        dtype = kinds[scheme["type"]]
        if scheme.get("dynamic"):
            return dtype, None
        found = {
            at: read_floats(checkpoint, name, math.prod(checkpoint.shape(name)))
            for at, name in named(checkpoint.names(), CACHE_SCALE).items()
        }
        return dtype, stack(config, found, f"{checkpoint.folder}: the KV cache")
    raise Unsupported(
        f"config.json: no KV cache is held as {scheme!r:.120}",
        remedy="Remove kv_cache_scheme from quantization_config, and use --kv-cache-dtype.",
    )


def _matches(targets: Any, module: str) -> bool:
    return isinstance(targets, list) and any(_is_target(target, module) for target in targets)


def _is_target(target: Any, module: str) -> bool:
    if not isinstance(target, str):
        return False
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target == module


def _group(groups: Mapping[str, Any], module: str) -> Mapping[str, Any] | None:
    """The group of a module: by its name, by a regular expression, else by its class."""
    found = [group for group in groups.values() if isinstance(group, Mapping)]
    for group in found:
        if _matches(group.get("targets"), module):
            return group
    for group in found:
        if "Linear" in (group.get("targets") or []):
            return group
    return None
