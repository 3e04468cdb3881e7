"""``qinfer run`` while the answer comes: interrupted, failing, with nobody reading."""

import signal

import fake_llm
from qinfer.core.errors import BrokenPlugin
from qinfer.core.outputs import Delta


def test_text_comes_as_it_is_made_and_ctrl_c_keeps_it(process) -> None:
    run = process("run", "--quiet", "one two three four five six", FAKE_DELAY="0.3")
    run.stdin.close()
    assert run.stdout.read(5) == b"echo:"  # while the rest is still to come
    run.send_signal(signal.SIGINT)
    rest = run.stdout.read()
    assert run.wait(10) == 130
    assert rest.endswith(b"\n")
    assert b"six" not in rest
    assert run.stderr.read() == b""


def test_an_error_in_an_answer_is_a_line_of_its_own(qinfer, monkeypatch) -> None:
    def stream(llm, prompt, params):
        yield Delta(index=0, text="half an")
        raise BrokenPlugin("it broke")

    monkeypatch.setattr(fake_llm.LLM, "stream", stream)
    result = qinfer("run", "x")
    assert (result.stdout, type(result.exception)) == ("half an\n", BrokenPlugin)


def test_a_closed_pipe_is_quiet(process) -> None:
    run = process("run", "--quiet", "x " * 2000, FAKE_DELAY="0.002")
    run.stdin.close()
    run.stdout.read(10)
    run.stdout.close()
    assert run.wait(20) == 141
    assert run.stderr.read() == b""
