import pytest

from qinfer.cuda_ops import ops, table


@pytest.fixture
def double():
    @table.operator
    def double_for_test(x):
        """Twice x."""
        return 2 * x

    yield double_for_test
    del table.TABLE["double_for_test"]


def test_the_reference_runs_until_another_version_is_used(double):
    double.versions["native"] = lambda x: x + x + 0.5
    assert double(3) == 6
    left = table.use("native")
    try:
        assert double(3) == 6.5
        assert "double_for_test" not in left
        assert "rms_norm" in left
    finally:
        table.use(table.REFERENCE)
    assert double(3) == 6


def test_every_operator_states_its_contract():
    assert len(table.TABLE) >= 12
    for name, entry in table.TABLE.items():
        assert entry.__doc__, f"{name} has no contract"
        assert name in ops.__all__


# Two run on a step's result, outside of its recording; `quantise` runs as a model is loaded;
# `each_expert` is for experts without an operator of their own, and reads back who was chosen.
OUTSIDE = {"edit_logits", "token_logprobs", "quantise", "each_expert"}

MADE_OF_OTHERS = {"attend", "gated_mlp", "norm_linear"}
"""Their references call operators of the table."""


def test_a_decoding_step_leaves_nothing_to_the_reference(version):
    """A recording holds native operators only."""
    if version == "cpu":
        assert set(table.use("cpu")) <= OUTSIDE | MADE_OF_OTHERS
