"""The mixture of experts in config.json."""

import pytest

from config.tools import DEFAULTS, EXPERTS, GOOD, OLD
from qinfer.core.config import decoder_config, with_experts
from qinfer.core.errors import BadCheckpoint


def read_experts(**changes):
    raw = {**GOOD, **OLD, **EXPERTS, **changes}
    return decoder_config(raw, defaults=DEFAULTS, extend=with_experts).experts


def test_experts():
    found = read_experts()
    assert (found.count, found.top_k, found.intermediate_size) == (8, 2, 96)
    assert found.normalise is True
    assert found.layers == frozenset(range(24))
    assert read_experts(num_experts=None, num_local_experts=8) == found
    assert read_experts(mlp_only_layers=[0, 5]).layers == frozenset(range(24)) - {0, 5}
    assert sorted(read_experts(decoder_sparse_step=5).layers) == [4, 9, 14, 19]
    assert read_experts(decoder_sparse_step=25) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts_per_tok": 9}, "9 is more than the 8 experts"),
        ({"num_experts": None}, "num_experts: missing"),
        ({"mlp_only_layers": [24]}, "mlp_only_layers: must list layers below 24"),
        ({"mlp_only_layers": 3}, "mlp_only_layers: must list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: must be a whole number from 1"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: must be true or false"),
        ({"shared_expert_intermediate_size": 64}, "not understood"),
    ],
)
def test_expert_refusals(changes, words):
    with pytest.raises(BadCheckpoint) as caught:
        read_experts(**changes)
    assert words in caught.value.message
