"""``qinfer chat``: piped, and at a terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_llm
from qinfer.core.cli.conversation import Conversation

TESTS = Path(__file__).parent.parent


def test_piped_lines_are_messages(qinfer) -> None:
    result = qinfer("chat", "--system", "S", input="one\n\ntwo\n/exit\nthree\n")
    assert result.exit_code == 0
    assert result.stdout == "echo: one\necho: two\n"
    llm = fake_llm.LLM.made[-1]
    assert llm.params[0].max_tokens is None
    assert llm.prompts[-1] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "echo: one"},
        {"role": "user", "content": "two"},
    ]


def test_commands(qinfer) -> None:
    result = qinfer("chat", input="one\n/reset\n/system Be brief.\ntwo\n/nonsense\n/system\n")
    assert fake_llm.LLM.made[-1].prompts[-1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "two"},
    ]
    assert result.stdout == "echo: one\necho: two\n"
    assert "unknown command /nonsense" in result.stderr
    assert "/reset" in result.stderr
    assert result.stderr.count("system message: Be brief.") == 2


def test_a_cut_answer_is_said(qinfer) -> None:
    result = qinfer("chat", "--stats", "--max-tokens", "1", input="a b\n")
    assert result.stdout.startswith("echo:")
    assert "first token after" in result.stderr


def test_stats_are_not_quiet(qinfer) -> None:
    result = qinfer("chat", "--stats", "--quiet", input="a\n")
    assert (result.exit_code, fake_llm.LLM.made) == (2, [])


def test_bad_input_ends_a_pipe(qinfer) -> None:
    assert qinfer("chat", input="BOOM\n").exit_code == 5
    assert qinfer("chat", input=b"ab\xff\n").exit_code == 5


def test_oldest_turns_are_dropped(qinfer) -> None:
    lines = "".join(f"w{i} " + "x " * 30 + "\n" for i in range(6))
    result = qinfer("chat", "--max-model-len", "200", input=lines)
    assert result.exit_code == 0
    assert "oldest turns were dropped" in result.stderr
    last = fake_llm.LLM.made[-1].prompts[-1]
    assert last[0]["role"] == "user"
    assert last[-1]["content"].startswith("w5")
    assert len(last) < 11


def test_a_message_that_is_too_long_by_itself() -> None:
    talk = Conversation(fake_llm.LLM(max_model_len=40), None)
    messages, dropped = talk.ask("short")
    assert (len(messages), dropped) == (1, 0)
    talk.answered("yes")
    try:
        talk.ask("x " * 100)
    except fake_llm.BadInput as error:
        assert "40 tokens" in error.message  # noqa: PT017
    assert len(talk.ask("again")[0]) == 3  # nothing was lost


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, *args: str, **env: str) -> None:
        self.master, slave = pty.openpty()
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        self.child = subprocess.Popen(
            [sys.executable, "-m", "fake_llm", "chat", *args],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "TERM": "dumb", **env},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, after: int = 0) -> int:
        """Read until the text is there; return where it ends."""
        end = time.monotonic() + 20
        while text not in self.seen[after:]:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096).decode()
            except OSError:
                self.seen += "\n[end]"
                break
        return self.seen.index(text, after) + len(text)

    def interrupt_prompt(self, after: int) -> int:
        """Python's readline can miss a signal between showing the prompt and waiting for keys."""
        for _ in range(20):
            self.child.send_signal(signal.SIGINT)
            if select.select([self.master], [], [], 1)[0]:
                break
        return self.wait_for("> ", after)


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    terminal = Terminal(FAKE_DELAY="0.2")
    at = terminal.wait_for("> ")
    terminal.type("one two three four five six seven eight\n")
    at = terminal.wait_for("echo: one", at)
    terminal.child.send_signal(signal.SIGINT)
    at = terminal.wait_for("(stopped)", at)
    assert "eight" not in terminal.seen.split("echo:")[1]
    at = terminal.wait_for("> ", at)
    terminal.type("hi\n")
    at = terminal.wait_for("echo: hi", at)
    at = terminal.wait_for("> ", at)
    at = terminal.interrupt_prompt(at)  # a fresh line
    terminal.type("BOOM\n")
    at = terminal.wait_for("9999 tokens", at)  # an error, and the program goes on
    at = terminal.wait_for("> ", at)
    terminal.type("\x04")
    assert terminal.child.wait(10) == 0
