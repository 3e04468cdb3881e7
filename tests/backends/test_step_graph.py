from hypothesis import given
from hypothesis import strategies as st

from qinfer.plugins.backends.step_graph import decode_sizes, prompt_size


@given(st.integers(1, 5000), st.integers(1, 400))
def test_a_graph_holds_the_prompts_it_is_for_with_little_to_spare(tokens, sequences):
    size = prompt_size(tokens, sequences)
    if size is None:
        assert tokens > 2048 or sequences > 256 or 4 * sequences > tokens
        return
    assert size.tokens >= tokens
    assert size.sequences >= sequences
    assert size.tokens - tokens < max(64, tokens / 2)
    assert not size.is_decode


@given(st.integers(1, 600))
def test_every_batch_has_a_size_to_decode_in(most):
    sizes = decode_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
