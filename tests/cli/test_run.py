"""``qinfer run`` with one prompt."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fake_llm
from qinfer.core.cli.options import Size


def made() -> fake_llm.LLM:
    return fake_llm.LLM.made[-1]


def test_streams_the_answer_and_nothing_else_on_stdout(qinfer) -> None:
    result = qinfer("run", "--model", "m", "Hello there")
    assert result.exit_code == 0
    assert result.stdout == "echo: Hello there\n"
    assert result.stderr == "model: m\n"
    assert made().prompts == [[{"role": "user", "content": "Hello there"}]]
    assert made().params[0].max_tokens == 256
    assert made().progress


def test_quiet(qinfer) -> None:
    result = qinfer("run", "--quiet", "Hello")
    assert (result.stdout, result.stderr) == ("echo: Hello\n", "")
    assert not made().progress


@pytest.mark.parametrize("args", [(), ("-",)])
def test_prompt_from_stdin(qinfer, args: tuple[str, ...]) -> None:
    result = qinfer("run", *args, input="two\nlines 中\n")
    assert result.stdout == "echo: two\nlines 中\n"


def test_raw_and_system(qinfer) -> None:
    qinfer("run", "--raw", "Once")
    assert made().prompts == ["Once"]
    qinfer("run", "--system", "Be brief.", "Once")
    assert made().prompts[0][0] == {"role": "system", "content": "Be brief."}


def test_chat_file(qinfer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    messages.append({"role": "user", "content": "c"})
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(messages))
    assert qinfer("run", "--chat", str(path), "--system", "S").stdout == "echo: c\n"
    assert made().prompts == [[{"role": "system", "content": "S"}, *messages]]
    assert qinfer("run", "--chat", "-", input=json.dumps({"messages": messages})).exit_code == 0


def test_sizes_that_are_not_given_are_left_to_the_device(qinfer) -> None:
    qinfer("run", "x")
    sizes = ("max_model_len", "max_num_seqs", "max_batch_tokens", "kv_cache_memory", "threads")
    assert [made().arguments[name] for name in sizes] == [0] * 5


def test_every_option_arrives(qinfer) -> None:
    qinfer(
        "run", "x", "--plugin", "p", "--quant", "fp8", "--backend", "b", "--observer", "o1",
        "--observer", "o2", "--device", "cpu", "--dtype", "float32", "--threads", "2",
        "--max-model-len", "99", "--max-num-seqs", "3", "--max-batch-tokens", "64",
        "--kv-cache-memory", "1.5GiB", "--require-kernels",
        "--max-tokens", "9", "--min-tokens", "1",
        "--kv-cache-dtype", "int8",
        "--temperature", "0.5", "--top-k", "4", "--top-p", "0.9", "--min-p", "0.1",
        "--repetition-penalty", "1.1", "--presence-penalty", "0.2", "--frequency-penalty", "0.3",
        "--seed", "7", "--stop", "A", "--stop", "B", "--stop-token-id", "5", "--ignore-eos",
        "--logit-bias", "3=-1.5", "--logprobs", "2", "-n", "2", "--json",
    )  # fmt: skip
    assert made().arguments == {
        "model": None, "plugin": "p", "quant": "fp8", "backend": "b", "observers": ("o1", "o2"),
        "device": "cpu", "dtype": "float32", "threads": 2, "max_model_len": 99,
        "max_num_seqs": 3, "max_batch_tokens": 64, "kv_cache_memory": 3 * 2**29,
        "kv_cache_dtype": "int8",
        "require_kernels": True,
    }  # fmt: skip
    params = made().params[0]
    assert (params.max_tokens, params.min_tokens, params.seed, params.n) == (9, 1, 7, 2)
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 4, 0.9, 0.1)
    assert params.repetition_penalty == 1.1
    assert (params.presence_penalty, params.frequency_penalty) == (0.2, 0.3)
    assert (params.stop, params.stop_token_ids) == (("A", "B"), (5,))
    assert params.ignore_eos
    assert params.logprobs == 2
    assert params.logit_bias == {3: -1.5}


def test_paddlenlp_names_work_and_are_hidden(qinfer) -> None:
    qinfer("run", "x", "--max_length", "5", "--top_k", "3", "--model_name_or_path", "m",
           "--quant_type", "fp8", "--total_max_length", "77")  # fmt: skip
    assert (made().params[0].max_tokens, made().params[0].top_k) == (5, 3)
    assert made().arguments["model"] == "m"
    assert made().arguments["quant"] == "fp8"
    assert made().arguments["max_model_len"] == 77
    text = qinfer("run", "--help").stdout
    assert "max_length" not in text
    assert "--max-length" not in text
    assert "--top_k" not in text
    for heading in ("Model options:", "Sampling options:", "Input and output options:"):
        assert heading in text


def test_json(qinfer) -> None:
    result = qinfer("run", "--json", "--logprobs", "1", "--quant", "fp8", "中 x")
    record = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert record["text"] == "echo: 中 x"
    assert record["finish_reason"] == "stop"
    assert record["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0}
    assert (record["model"], record["plugin"], record["quant"]) == ("demo", "qwen2", "fp8")
    assert record["logprobs"][0]["top"] == [{"token_id": 5, "token": "x", "logprob": -0.5}]
    assert "completions" not in record


def test_several_answers(qinfer) -> None:
    assert qinfer("run", "-n", "2", "x").stdout == "[0]\necho: x\n[1]\necho: x\n"
    record = json.loads(qinfer("run", "-n", "2", "--json", "x").stdout)
    assert [c["index"] for c in record["completions"]] == [0, 1]


def test_stats(qinfer) -> None:
    result = qinfer("run", "--stats", "a b c")
    assert result.stdout == "echo: a b c\n"
    for part in (
        "model: demo, context 4,096 tokens",
        "quant: fake",
        "1,000 parameters in 3 MiB (7 fp8 linears)",
        "not quantised: lm_head: its error is too large",
        "prompt: 3 tokens (1 cached), 4.0 tokens/s; answer: 4 tokens, 3.0 tokens/s",
        "first token after 0.500 s",
        "finish reason: stop",
        "peak memory: ",
    ):
        assert part in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("x", "--chat", "f"), 2, "only one of"),
        (("x", "--input", "f"), 2, "only one of"),
        (("--input", "f"), 2, "both --input and --output"),
        (("x", "--output", "f"), 2, "both --input and --output"),
        (("x", "--raw", "--system", "s"), 2, "--raw"),
        (("x", "--logprobs", "2"), 2, "add --json"),
        (("x", "--restart"), 2, "--restart"),
        (("x", "--temperature", "-1"), 2, "temperature"),
        (("x", "--temperature", "nan"), 2, "temperature"),
        (("x", "--max-tokens", "0"), 2, "max_tokens must be at least 1"),
        (("x", "--top-p", "1.5"), 2, "top_p"),
        (("x", "--kv-cache-memory", "2 apples"), 2, "is no size"),
        (("x", "--logit-bias", "a=b"), 2, "TOKEN_ID=BIAS"),
        (("x", "--dtype", "int4"), 2, "int4"),
        (("x", "--model", ""), 2, "it is empty"),
        (("x", "--quant", ""), 2, "it is empty"),
        (("",), 5, "empty"),
        (("  \n",), 5, "empty"),
        (("--chat", "/nowhere/x.json"), 5, "cannot read /nowhere/x.json"),
        (("BOOM",), 5, "9999 tokens"),
    ],
)
def test_mistakes(qinfer, args: tuple[str, ...], code: int, message: str) -> None:
    result = qinfer("run", *args)
    assert result.exit_code == code
    assert message in str(getattr(result.exception, "message", result.exception))
    assert result.stdout == ""
    if args != ("BOOM",):
        assert fake_llm.LLM.made == []  # noticed before anything is loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "non-empty"), ('[{"role": "x", "content": "y"}]', "role must be")],
)
def test_bad_conversations(qinfer, text: str, message: str) -> None:
    result = qinfer("run", "--chat", "-", input=text)
    assert result.exit_code == 5
    assert message in result.exception.message


@pytest.mark.parametrize(
    ("text", "size"),
    [("10", 10), ("2GB", 2 * 10**9), ("512MiB", 2**29), ("1.5k", 1500), ("1 TiB", 2**40)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


def test_invalid_utf8_on_stdin(process) -> None:
    run = process("run")
    out, err = run.communicate(b"abc\xff def")
    assert run.returncode == 5
    assert out == b""
    assert b"the prompt on standard input is not valid UTF-8: byte 3 is 0xff" in err


def test_invalid_utf8_in_an_argument(process) -> None:
    run = process("run", b"ab\xffc")
    _, err = run.communicate()
    assert run.returncode == 5
    assert b"byte 2 is 0xff" in err


def test_no_prompt_at_a_terminal(qinfer, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import pty

    master, slave = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-m", "qinfer", "run"], stdin=slave, capture_output=True, check=False
    )
    os.close(master)
    assert child.returncode == 2
    assert b"Missing PROMPT" in child.stderr


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom qinfer.core.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'paddle', 'rich', 'tokenizers', 'jinja2', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert child.stderr.strip() == "[]"
