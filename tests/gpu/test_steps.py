"""Steps with prompts: the first of a size eagerly, the next ones through a graph of it."""

import numpy as np

from goldens import tiny
from gpu.test_models import answers, open_llm

WIDE = tiny.Case(name="wide", hidden_size=256, width=64, intermediate_size=512)


def test_a_prompt_through_a_graph_is_answered_as_eagerly(tmp_path):
    from qinfer.core.params import SamplingParams

    folder = tiny.write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True).with_defaults({})
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, WIDE.vocab_size, size).tolist() for size in (100, 97, 120)]
    with open_llm(folder) as llm:
        forth = [answers(llm, prompt, params, 1) for prompt in prompts]
        sizes = [size for size in llm.engine.runner.graphs if not size.is_decode]
    with open_llm(folder) as llm:
        back = [answers(llm, prompt, params, 1) for prompt in reversed(prompts)]
    assert [(size.tokens, size.sequences) for size in sizes] == [(128, 1)]
    assert forth == back[::-1]


def test_several_prompts_in_a_graph(tmp_path):
    """Three sequences in a graph for four, beside what each says alone."""
    from qinfer.core.params import SamplingParams

    folder = tiny.write_checkpoint(tmp_path, WIDE, dtype="bfloat16")
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True).with_defaults({})
    rng = np.random.default_rng(1)
    rounds = [[rng.integers(0, WIDE.vocab_size, 50 + i).tolist() for i in range(3)] for _ in "abc"]
    with open_llm(folder) as llm:
        alone = [[answers(llm, prompt, params, 1)[0] for prompt in group] for group in rounds]
    with open_llm(folder) as llm:
        for group, expected in zip(rounds, alone, strict=True):
            found = {llm.engine.add(prompt, params): [] for prompt in group}
            while llm.engine.has_work:
                for request, delta in llm.engine.step():
                    found[request].extend(delta.token_ids)
            assert list(found.values()) == expected
        assert any(size.sequences == 4 for size in llm.engine.runner.graphs if not size.is_decode)
