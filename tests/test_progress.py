"""Notes on standard error while an answer comes on standard output."""

import subprocess
import sys

import pytest

TALK = """
from qinfer.core.cli.show import end_line, piece
from qinfer.core.progress import TerminalProgress
note = TerminalProgress().note
note("before")
piece("half")
note("meanwhile")
piece(" done\\n")
note("between")
piece("rest")
end_line()
note("after")
"""


@pytest.mark.parametrize("together", [True, False], ids=["one place", "two"])
def test_a_note_is_a_line_of_its_own_in_the_midst_of_an_answer(together):
    stderr = subprocess.STDOUT if together else subprocess.PIPE
    command = [sys.executable, "-c", TALK]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd="/", check=True
    )
    if together:
        assert done.stdout == "before\nhalf\nmeanwhile\n done\nbetween\nrest\nafter\n"
    else:
        assert done.stdout == "half done\nrest\n"
        assert done.stderr == "before\nmeanwhile\nbetween\nafter\n"
