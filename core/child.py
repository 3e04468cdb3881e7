"""Python code in a process of its own."""

from __future__ import annotations

import sys

_NOT_HERE = "import sys; sys.path[:] = [place for place in sys.path if place]\n"


def python_command(code: str, *arguments: str) -> list[str]:
    """A command that runs ``code`` under this interpreter with ``arguments`` in sys.argv[1:].

    The current folder is not searched for modules: in a clone of this project it holds a package
    called qinfer that is only the façade of the installed one.
    """
    return [sys.executable, "-c", _NOT_HERE + code, *arguments]
