"""Whatever config.json holds, it is read or refused in one way."""

from contextlib import suppress

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.tools import DEFAULTS, EXPERTS, GOOD, NEW, OLD, PAPER, read
from qinfer.core.config import decoder_config, with_experts
from qinfer.core.errors import BadCheckpoint
from qinfer.core.rotary import rotary_table

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = sorted({*GOOD, *OLD, *NEW, *EXPERTS, "head_dim", "quantization_config", "attention_bias"})
SCALING = st.dictionaries(
    st.sampled_from([*PAPER, "type", "mscale", "mscale_all_dim", "beta_slow", "attention_factor"]),
    JUNK | st.sampled_from(["yarn", "linear", "dynamic", 4.0, 1.0, 8192]),
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=6))
def test_junk_is_refused_in_one_way(changes):
    with suppress(BadCheckpoint):
        decoder_config({**GOOD, **OLD, **changes}, defaults=DEFAULTS)
    with suppress(BadCheckpoint):
        decoder_config({**GOOD, **OLD, **EXPERTS, **changes}, defaults={}, extend=with_experts)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(SCALING)
def test_junk_scalings_are_refused_or_make_finite_tables(scaling):
    with suppress(BadCheckpoint):
        found = read(rope_scaling=scaling)
        table = rotary_table(9, found.head_dim, found.rope_theta, found.rotary_scaling)
        assert np.isfinite(table).all()
