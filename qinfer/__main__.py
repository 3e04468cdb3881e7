"""``python -m qinfer``, and what the ``qinfer`` command starts with."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Ctrl-C while that is being imported ends it as it does later; before
    this line, Python itself is starting, and ends with a traceback.
    """
    try:
        from qinfer.core.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # ends the line with the terminal's ^C
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
