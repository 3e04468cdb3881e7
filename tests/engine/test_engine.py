"""What the engine says of its steps."""

import numpy as np

from qinfer.core.engine.engine import Engine, Limits
from qinfer.core.engine.sizing import choose_sizes
from qinfer.core.params import SamplingParams
from qinfer.core.types import CacheSpec, RunConfig, StepOutput


class Silent:
    """A tokenizer without texts, a runner that chooses token 1, hooks that keep what they hear."""

    def __init__(self):
        self.steps = []

    def text_stream(self):
        return self

    def push(self, token):
        return ""

    finish = str

    def step(self, batch, sampling):
        return StepOutput(token_ids=np.ones(len(batch.logit_rows), np.int64))

    def step_done(self, stats):
        self.steps.append((stats.prefill_tokens, stats.decode_tokens))

    def request_done(self, stats):
        pass


def test_tokens_of_prompts_and_decoded_ones_are_told_apart():
    parts = Silent()
    limits = Limits(max_model_len=64, vocab_size=9, eos_token_ids=frozenset())
    cache = CacheSpec(num_layers=1, num_kv_heads=1, head_dim=8, block_size=4, num_blocks=32)
    run = choose_sizes(RunConfig(max_batch_tokens=6), "cpu")
    engine = Engine(parts, cache, run, limits, parts, parts)
    params = SamplingParams(max_tokens=3, ignore_eos=True).with_defaults({})
    engine.add([2] * 5, params)
    engine.add([3] * 4, params)
    while engine.has_work:
        engine.step()
    # 5 and the first of 4; one decoded beside the other 3; both; the second one's last.
    assert parts.steps == [(6, 0), (3, 1), (0, 2), (0, 1)]


def test_sizes_are_chosen_by_the_device_where_none_are_given():
    given = RunConfig(max_num_seqs=7, block_size=8)
    for kind in ("cpu", "gpu"):
        kept = choose_sizes(given, kind)
        assert (kept.max_num_seqs, kept.block_size) == (7, 8)
        assert kept.max_batch_tokens > 7
    wide = choose_sizes(RunConfig(max_num_seqs=100_000), "gpu")
    assert wide.max_batch_tokens == 100_000  # or a step could not hold them
