"""Why operators are built again."""

import os

from qinfer.cuda_ops.build_facts import digest, files_digest, why_again, write

OLD = {"the sources": "a", "Paddle": "3.3.1", "the cards": "90"}


def built(folder, facts, seconds):
    folder.mkdir()
    write(facts, folder)
    os.utime(folder / "facts.json", (seconds, seconds))
    return folder


def test_the_newest_build_is_compared(tmp_path):
    older = built(tmp_path / "one", OLD | {"the cards": "80"}, 1000)
    newer = built(tmp_path / "two", OLD, 2000)
    now = OLD | {"the sources": "b", "Paddle": "3.4"}
    assert why_again(now, [newer, older]) == "changed since the last build: the sources, Paddle"
    assert why_again(OLD, [older, newer]) == "damaged or deleted"


def test_nothing_and_nonsense(tmp_path):
    assert why_again(OLD, [tmp_path]) == "never built before"
    (tmp_path / "facts.json").write_text("{")
    assert why_again(OLD, [tmp_path]) == "the last build is damaged"


def test_digests_differ_with_names_and_contents(tmp_path):
    one, two = tmp_path / "a.cu", tmp_path / "b.cu"
    one.write_text("x")
    first = files_digest([one])
    one.rename(two)
    assert files_digest([two]) != first
    assert digest(OLD) == digest(dict(reversed(OLD.items()))) != digest(OLD | {"Paddle": "4"})
