"""The rotary settings of config.json, in both styles."""

import pytest

from config.tools import DEFAULTS, GOOD, NEW, PAPER, read
from qinfer.core.config import decoder_config


@pytest.mark.parametrize(
    ("scaling", "context", "expected"),
    [
        ({"type": "linear", "factor": 2}, 65536, {"kind": "linear", "factor": 2}),
        ({"rope_type": "dynamic", "factor": 3.0}, 98304, {"kind": "dynamic", "factor": 3}),
        (PAPER, 32768, {"kind": "yarn", "original": 8192, "attention_factor": 1.1386294}),
        (PAPER | {"attention_factor": 1.5}, 32768, {"attention_factor": 1.5, "beta_fast": 32}),
        (PAPER | {"mscale": 1.0, "mscale_all_dim": 1.0}, 32768, {"attention_factor": 1}),
        (PAPER | {"factor": None}, 32768, {"factor": 4}),
        (PAPER | {"factor": 8.0, "truncate": False}, 65536, {"factor": 8, "truncate": False}),
    ],
)
@pytest.mark.parametrize("style", [4, 5])
def test_rotary_scaling(scaling, context, expected, style):
    if style == 4:
        config = read(rope_scaling=scaling)
    else:
        config = decoder_config(
            {**GOOD, **NEW, "rope_parameters": {"rope_theta": 1e6, **scaling}}, defaults=DEFAULTS
        )
    assert config.max_position_embeddings == context
    found = vars(config.rotary_scaling)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
