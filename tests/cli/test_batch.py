"""``qinfer run --input``: every line gets its record, whatever happens."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

import fake_llm
from qinfer.core.batch import journal
from qinfer.core.batch import lines as batch_lines
from qinfer.core.batch.lines import BatchSettings
from qinfer.core.batch.run import Batch
from qinfer.core.errors import QinferError
from qinfer.core.params import SamplingParams

SETTINGS = BatchSettings(params=SamplingParams())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def write(path: Path, records: list[object]) -> None:
    data = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(data) + b"\n")


def args(files: tuple[Path, Path], *more: str) -> tuple[str, ...]:
    return ("run", "--input", str(files[0]), "--output", str(files[1]), *more)


def test_results_in_order_with_the_inputs_fields(qinfer, files) -> None:
    write(files[0], [{"prompt": f"p{i}", "id": i, "tag": "中"} for i in range(11)])
    assert qinfer(*args(files)).exit_code == 0
    records = lines(files[1])
    assert [r["index"] for r in records] == [r["id"] for r in records] == list(range(11))
    assert records[3] == {
        "prompt": "p3",
        "id": 3,
        "tag": "中",
        "index": 3,
        "output": "echo: p3",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 0},
    }
    assert sorted(os.listdir(files[0].parent)) == ["in.jsonl", "out.jsonl"]
    assert "中" in files[1].read_text(encoding="utf-8")


def test_several_answers_and_logprobs(qinfer, files) -> None:
    write(files[0], [{"prompt": "p"}])
    assert qinfer(*args(files, "-n", "2", "--logprobs", "0")).exit_code == 0
    record = lines(files[1])[0]
    assert record["output"] == ["echo: p"] * 2
    assert record["finish_reason"] == ["stop"] * 2
    assert len(record["logprobs"]) == 2


def test_bad_lines_get_error_records_and_the_others_run(qinfer, files, monkeypatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINE_BYTES", 500)
    bad = [
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"prompt": "a\xff"}', "not valid UTF-8 (at byte 13)"),
        (b'{"prompt": NaN}', "NaN"),
        (b"[" * 400, "not JSON"),
        (b'{"prompt": "' + b"x" * 2000 + b'"}', "longer than 500 bytes"),
        ({}, "exactly one of"),
        ({"prompt": "a", "src": "b"}, "prompt and src"),
        ({"prompt": ""}, "empty"),
        ({"prompt": 5}, "must be text"),
        ({"messages": [{"role": "x"}]}, "role must be"),
        ({"src": ["a", "b"], "tgt": []}, "at least 1 answers"),
        ({"src": []}, "empty list"),
        ({"prompt": "a", "system": 5}, '"system" must be text'),
        ({"prompt": "a", "max_tokens": 5}, "stand beside the prompt: max_tokens"),
        ({"prompt": "a", "params": {"max_token": 5}}, "unknown names"),
        ({"prompt": "a", "params": {"temperature": -1}}, "temperature"),
        ({"prompt": "a", "params": {"stop": 5}}, "wrong type"),
        ({"prompt": "a", "params": {"logit_bias": 5}}, "wrong type"),
        ({"prompt": "a", "params": {"logit_bias": {"x": 5}}}, "wrong type"),
        ({"prompt": "a", "params": []}, "must be an object"),
        ({"prompt": "BOOM", "id": 9}, "9999 tokens"),
    ]
    write(files[0], [{"prompt": "first"}, b"", *[line for line, _ in bad], {"prompt": "last"}])
    result = qinfer(*args(files))
    assert result.exit_code == 5
    assert f"{len(bad)} of {len(bad) + 2} lines failed" in result.stderr
    records = lines(files[1])
    assert len(records) == len(bad) + 2
    assert records[0]["output"] == "echo: first"
    assert records[-1]["output"] == "echo: last"
    for record, (_, message) in zip(records[1:-1], bad, strict=True):
        assert record["error"]["type"] == "BadInput"
        assert message in record["error"]["message"]
        assert "output" not in record
    assert records[-2]["id"] == 9


def test_lone_surrogates_survive(qinfer, files) -> None:
    write(files[0], [b'{"prompt": "x", "note": "\\ud800"}'])
    assert qinfer(*args(files)).exit_code == 0
    assert lines(files[1])[0]["note"] == "\ud800"


def test_output_on_stdout(qinfer, files) -> None:
    write(files[0], [{"prompt": f"p{i}"} for i in range(3)])
    result = qinfer("run", "--input", str(files[0]), "--output", "-")
    assert sorted(json.loads(line)["index"] for line in result.stdout.splitlines()) == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_batch_continues(process, files, number: signal.Signals) -> None:
    write(files[0], [{"prompt": f"p{i}"} for i in range(20)])
    partial = files[1].with_name("out.jsonl.partial")
    first = process(*args(files), FAKE_DELAY="0.05")
    end = time.monotonic() + 20
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 6):
        assert time.monotonic() < end
        time.sleep(0.01)
    first.send_signal(number)
    _, err = first.communicate(timeout=20)
    assert first.returncode == (130 if number == signal.SIGINT else -9)
    assert not files[1].exists()
    if number == signal.SIGINT:
        assert b"the same command continues there" in err
    with partial.open("ab") as file:
        file.write(b'{"index": 19, "outp')  # what a crash can leave
    second = process(*args(files))
    _, err = second.communicate(timeout=20)
    assert second.returncode == 0
    assert b"continuing: " in err
    records = lines(files[1])
    assert [r["index"] for r in records] == list(range(20))
    assert [r["output"] for r in records] == [f"echo: p{i}" for i in range(20)]
    assert not partial.exists()


def interrupted(qinfer, files) -> Path:
    """A batch that stopped half way on an engine failure; its partial output."""
    write(files[0], [{"prompt": "FATAL" if i == 6 else f"p{i}"} for i in range(12)])
    with pytest.raises(RuntimeError):
        qinfer(*args(files))
    write(files[0], [{"prompt": "FATAL" if i == 6 else f"p{i}"} for i in range(12)])
    return files[1].with_name("out.jsonl.partial")


def test_another_batch_is_refused(qinfer, files) -> None:
    partial = interrupted(qinfer, files)
    before = partial.read_bytes()
    refused = qinfer(*args(files, "--temperature", "0.5", "--quant", "fp8"))
    assert refused.exit_code == 2
    assert "quant, temperature" in refused.exception.message
    assert "--restart" in refused.exception.remedy
    write(files[0], [{"prompt": "other"}])
    refused = qinfer(*args(files))
    assert "the input file" in refused.exception.message
    assert partial.read_bytes() == before
    assert qinfer(*args(files, "--restart")).exit_code == 0
    assert [r["output"] for r in lines(files[1])] == ["echo: other"]


def test_speed_settings_may_change(qinfer, files) -> None:
    partial = interrupted(qinfer, files)
    done = len(lines(partial)) - 1
    assert done >= 4
    with pytest.raises(RuntimeError):
        qinfer(*args(files, "--threads", "1", "--max-num-seqs", "2"))
    assert len(lines(partial)) - 1 >= done


def test_a_foreign_file_is_not_touched(qinfer, files) -> None:
    write(files[0], [{"prompt": "a"}])
    partial = files[1].with_name("out.jsonl.partial")
    partial.write_text("my notes\nof years\n")
    assert qinfer(*args(files)).exit_code == 2
    assert partial.read_text() == "my notes\nof years\n"


def test_two_at_a_time_are_refused(files) -> None:
    write(files[0], [{"prompt": "a"}])
    batch = Batch(files[0], files[1], SETTINGS)
    with pytest.raises(QinferError, match="being written by another"):
        Batch(files[0], files[1], SETTINGS)
    batch.close()


def test_full_disk_keeps_what_is_there(files, monkeypatch) -> None:
    write(files[0], [{"prompt": f"p{i}"} for i in range(10)])
    room = 900

    class SmallDisk(journal.FileIO):
        def write(self, data: bytes) -> int:
            fits = data[: max(0, room - os.fstat(self.fileno()).st_size)]
            if not fits:
                raise OSError(28, "No space left on device")
            return super().write(fits)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "FileIO", SmallDisk)
        batch = Batch(files[0], files[1], SETTINGS)
        with pytest.raises(QinferError, match="No space left on device") as caught:
            batch.run(fake_llm.LLM())
        batch.close()
    assert "continues where it stopped" in caught.value.remedy
    again = Batch(files[0], files[1], SETTINGS)
    assert 0 < again.done < 10
    llm = fake_llm.LLM()
    assert again.run(llm) == 0
    assert len(llm.prompts) == 10 - (again.done - len(llm.prompts))
    assert [r["index"] for r in lines(files[1])] == list(range(10))


def test_unwritable_output(qinfer, files) -> None:
    write(files[0], [{"prompt": "a"}])
    result = qinfer("run", "--input", str(files[0]), "--output", str(files[1] / "deep" / "x"))
    assert result.exit_code == 1
    assert "cannot write" in result.exception.message
    assert "a folder that is there" in result.exception.remedy
    assert fake_llm.LLM.made == []


def test_only_other_files_are_replaced(qinfer, files) -> None:
    """Not the input, not /dev/null, which root may replace, nor what a link points from."""
    write(files[0], [{"prompt": "a"}])
    os.mkfifo(pipe := files[1].with_name("pipe"))
    for output, reason in ((files[0], "both input"), (pipe, "no file"), (pipe.parent, "no file")):
        result = qinfer("run", "--input", str(files[0]), "--output", str(output))
        assert (result.exit_code, reason in result.exception.message) == (2, True)
    assert (pipe.is_fifo(), lines(files[0]), fake_llm.LLM.made) == (True, [{"prompt": "a"}], [])
    link = files[1].with_name("link")
    link.symlink_to(files[1])
    assert qinfer("run", "--input", str(files[0]), "--output", str(link)).exit_code == 0
    assert (link.is_symlink(), lines(files[1])[0]["output"]) == (True, "echo: a")


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_unreadable_input(qinfer, files, name: str) -> None:
    result = qinfer("run", "--input", str(files[0].parent / name), "--output", str(files[1]))
    assert result.exit_code == 5
    assert not files[1].with_name("out.jsonl.partial").exists()
