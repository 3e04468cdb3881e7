"""How Paddle is started, and with what it is not."""

import signal
import sys

import pytest

from qinfer.core.errors import UsageError
from qinfer.core.hardware.start_paddle import MOST_THREADS, import_paddle

INTERRUPTED = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("initialization failed")
"""


def test_more_threads_than_a_system_may_give_are_refused():
    """OpenMP would end the process."""
    with pytest.raises(UsageError, match="at most 1,024, not 1,025"):
        import_paddle(MOST_THREADS + 1)


def test_ctrl_c_while_it_is_imported(monkeypatch, tmp_path):
    """Paddle swallows it, or says that it could not be imported."""
    (tmp_path / "paddle.py").write_text(INTERRUPTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "paddle")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        import_paddle()
    assert signal.getsignal(signal.SIGINT) is before
