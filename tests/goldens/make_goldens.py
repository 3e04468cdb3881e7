"""Compute the golden answers again. Run by hand; the tests need neither torch nor transformers.

    pip install torch transformers numpy        # any interpreter; the project itself isn't needed
    PYTHONPATH=tests python -m goldens.make_goldens [CASE ...]

transformers has no first Qwen. Its cases come from PaddleNLP, in an environment of its own:

    pip install 'qinfer-paddle[cpu,paddlenlp]'
    PYTHONPATH=tests python -m goldens.make_goldens qwen qwen_long qwen_plain

Writes ``tests/goldens/data/<case>.npz`` (and ``<case>-bfloat16.npz``), holding

    config    the case's config.json, as JSON text
    versions  of python, numpy and what computed it, as JSON text
    prompt    [P] int64
    tokens    [24] int64, the greedy continuation
    logits    [P + 24, vocab] float32, of every position of prompt + tokens
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from goldens import reference, reference_paddlenlp, tiny

DATA = Path(__file__).parent / "data"
LEAST_MARGIN = 2e-2
"""Greedy choices closer than this would hang on rounding: take another seed."""


def main(names: list[str]) -> None:
    DATA.mkdir(exist_ok=True)
    others = [name for name, case in tiny.CASES.items() if case.family != "qwen"]
    for name in names or others:
        case = tiny.CASES[name]
        write(case, "float32", DATA / f"{name}.npz")
        if case.bfloat16:
            write(case, "bfloat16", DATA / f"{name}-bfloat16.npz")


def write(case: tiny.Case, dtype: str, path: Path) -> None:
    """Compute one case and store it, unless a greedy choice is too close to call."""
    source = reference_paddlenlp if case.family == "qwen" else reference
    answer = source.compute(case, dtype)
    if answer.margin < LEAST_MARGIN:
        raise SystemExit(f"{path.stem}: a greedy choice is within {answer.margin:.1e}; new seed")
    np.savez_compressed(
        path,
        config=json.dumps(case.config),
        versions=json.dumps(source.versions()),
        prompt=np.array(tiny.prompt(case), np.int64),
        tokens=answer.tokens,
        logits=answer.logits,
    )
    distinct = len(set(answer.tokens.tolist()))
    print(  # noqa: T201
        f"{path.stem}: {path.stat().st_size // 1024} KiB, logits {answer.logits.std():.2f} wide, "
        f"least margin {answer.margin:.3f}, {distinct} distinct tokens of {len(answer.tokens)}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
