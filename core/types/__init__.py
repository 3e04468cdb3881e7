"""The vocabulary plugins and core share. Standard library only; every class is frozen.

Import from here; the modules beside this one hold a concept each. Within one API major these
classes only gain fields that have defaults. Array-valued fields are numpy arrays in core and device
tensors inside a model.
"""

from qinfer.core.types.arrays import Array
from qinfer.core.types.cache import CacheSpec, LayerCache
from qinfer.core.types.model import ExpertConfig, ModelConfig, RotaryScaling
from qinfer.core.types.operators import NEVER_BUILT, ExportNeeds, OperatorBuild
from qinfer.core.types.plugin import API_VERSION, Kind, PluginInfo, Support
from qinfer.core.types.quant import QuantPlan, Scheme
from qinfer.core.types.run import DeviceInfo, RunConfig
from qinfer.core.types.stats import LoadStats, OperatorTime, RequestStats, StepStats
from qinfer.core.types.step import SamplingInput, StepInput, StepOutput
from qinfer.core.types.weights import LinearSpec, WeightOp, WeightRule

__all__ = [
    "API_VERSION",
    "NEVER_BUILT",
    "Array",
    "CacheSpec",
    "DeviceInfo",
    "ExpertConfig",
    "ExportNeeds",
    "Kind",
    "LayerCache",
    "LinearSpec",
    "LoadStats",
    "ModelConfig",
    "OperatorBuild",
    "OperatorTime",
    "PluginInfo",
    "QuantPlan",
    "RequestStats",
    "RotaryScaling",
    "RunConfig",
    "SamplingInput",
    "Scheme",
    "StepInput",
    "StepOutput",
    "StepStats",
    "Support",
    "WeightOp",
    "WeightRule",
]
