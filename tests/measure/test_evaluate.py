"""Perplexity and divergence against the definitions in float64, over logits taken another way."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from goldens import tiny
from goldens.steps import step_logits
from qinfer.core.cli.eval import command
from qinfer.core.errors import BadInput, QinferError, UsageError
from qinfer.core.measure.evaluate import CHUNK, evaluate
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.text.corpus import CALIBRATION, EVALUATION, read_corpus, windows
from qinfer.core.text.tokenizer import Tokenizer
from qinfer.core.types import RunConfig

TEXT = "It was a bright morning, and the river ran past the mill. " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("eval") / "m", tiny.CASES["gqa"])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run_of(folder, quant="none", window=200):
    return RunConfig(model=str(folder), quant=quant, dtype="float32", max_model_len=window)


def by_definition(folder, quant, pieces):
    """Log-probabilities at every predicted position, and the tokens predicted."""
    run = run_of(folder, quant)
    opened = load_model(run, select(run), folder, NoProgress())
    rows = [step_logits(opened, piece, [len(piece)])[:-1] for piece in pieces]
    logits = np.concatenate(rows).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logprobs, np.concatenate([piece[1:] for piece in pieces])


def test_scores_are_what_the_definitions_say(folder, text):
    window = 200  # more than one step, and a last piece that is shorter
    pieces = windows(read_corpus(text, Tokenizer.load(folder)), window)
    assert window > CHUNK
    assert len(pieces[-1]) < window
    first, same, other = evaluate(
        run_of(folder),
        [("same", run_of(folder)), ("int8", run_of(folder, "wint8"))],
        text=text,
        window=window,
    )
    exact, targets = by_definition(folder, "none", pieces)
    quantised, _ = by_definition(folder, "wint8", pieces)
    rows = np.arange(len(targets))
    assert first.tokens == len(targets)
    np.testing.assert_allclose(first.perplexity, np.exp(-exact[rows, targets].mean()), rtol=1e-5)
    np.testing.assert_allclose(
        other.perplexity, np.exp(-quantised[rows, targets].mean()), rtol=1e-4
    )
    divergence = (np.exp(exact) * (exact - quantised)).sum(axis=1).mean()
    assert divergence > 1e-6
    np.testing.assert_allclose(other.mean_kl, divergence, rtol=0.02)
    agreed = (exact.argmax(axis=1) == quantised.argmax(axis=1)).mean()
    assert other.top1_agreement == pytest.approx(agreed, abs=1.5 / len(rows))
    assert first.mean_kl is None
    assert (same.perplexity, same.top1_agreement) == (first.perplexity, 1.0)
    assert 0 <= same.mean_kl < 1e-6


def test_models_of_two_vocabularies_are_not_compared(folder, text, tmp_path):
    other = tiny.write_checkpoint(tmp_path / "other", tiny.CASES["long"])
    with pytest.raises(UsageError, match="cannot be compared"):
        list(evaluate(run_of(folder), [("other", run_of(other))], text=text))


def test_a_misspelt_scheme_is_said_first(folder):
    with pytest.raises(QinferError, match="wint7"):
        next(evaluate(run_of(folder), [("x", run_of(folder, "wint7"))]))


def test_windows_cover_every_token_once():
    documents = [list(range(10)), list(range(10, 15)), [15]]
    assert windows(documents, 4) == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12, 13],
    ]  # fmt: skip
    assert windows(documents, 4, limit=7) == [[0, 1, 2, 3], [4, 5, 6]]


def test_every_form_of_line_is_read(folder, tmp_path):
    path = tmp_path / "lines.jsonl"
    records = [
        {"text": "plain text"},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"src": ["one", "three"], "tgt": ["two"]},
        {"src": "one", "tgt": "two"},
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    tokenizer = Tokenizer.load(folder)
    read = ["".join(tokenizer.token_text(t) for t in ids) for ids in read_corpus(path, tokenizer)]
    assert read[0] == "plain text"
    assert [text.count("<|im_start|>") for text in read] == [0, 1, 3, 2]
    assert not any(text.endswith("assistant\n") for text in read)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": 3}', "line 2: it has neither"),
        ("a.jsonl", b"[1]", "line 1: the line must be a JSON object"),
        ("a.jsonl", b"", "has no text"),
        ("a.txt", b"", "has no text"),
        ("a.txt", b"caf\xe9", "UTF-8"),
    ],
)
def test_a_file_without_text_is_refused(folder, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        read_corpus(path, Tokenizer.load(folder))


def test_the_built_in_sets_have_nothing_in_common(folder):
    tokenizer = Tokenizer.load(folder)
    sentences = [
        {s for s in path.read_text(encoding="utf-8").split(". ") if len(s) > 30}
        for path in (EVALUATION, CALIBRATION)
    ]
    assert not sentences[0] & sentences[1]
    assert all(len(read_corpus(path, tokenizer)) > 8 for path in (EVALUATION, CALIBRATION))


def call(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)


def test_the_command_prints_records_and_a_table(folder, text, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.svg"
    common = ("--model", folder, "--quant", "wint8", "--text", text, "--max-tokens", "60")
    done = call(*common, "--json", "--plot", plot)
    assert done.exception is None
    first, second = json.loads(done.stdout)
    assert (first["label"], second["label"]) == ("reference", "wint8")
    assert second["perplexity_change"] == pytest.approx(
        second["perplexity"] / first["perplexity"] - 1
    )
    assert second["parameter_bytes"] < first["parameter_bytes"]
    assert plot.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    heading, reference, row = call(*common).stdout.splitlines()
    assert heading.split()[0] == "perplexity"
    assert reference.split()[2:4] == ["-", "-"]
    assert row.split()[0] == "wint8"


def test_the_disk_is_looked_at_first(folder, text, monkeypatch):
    import shutil

    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("qinfer.core.measure.evaluate.shutil.disk_usage", lambda path: usage)
    with pytest.raises(QinferError, match="MiB free"):
        next(evaluate(run_of(folder), [], text=text))
