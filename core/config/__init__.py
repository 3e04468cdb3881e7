"""config.json and generation_config.json: what model plugins read them with."""

from qinfer.core.config.check import ConfigChecker
from qinfer.core.config.decoder import decoder_config
from qinfer.core.config.generation import generation_config, with_generation
from qinfer.core.config.layers import with_experts

__all__ = [
    "ConfigChecker",
    "decoder_config",
    "generation_config",
    "with_experts",
    "with_generation",
]
