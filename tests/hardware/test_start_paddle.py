"""What Paddle is not started with."""

import pytest

from qinfer.core.errors import UsageError
from qinfer.core.hardware.start_paddle import MOST_THREADS, import_paddle


def test_more_threads_than_a_system_may_give_are_refused():
    """OpenMP would end the process."""
    with pytest.raises(UsageError, match="at most 1,024, not 1,025"):
        import_paddle(MOST_THREADS + 1)
