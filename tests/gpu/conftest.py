"""Tests that need an NVIDIA card: skipped without one."""

import pytest

from qinfer.core.hardware.nvidia import cards
from qinfer.cuda_ops import table


def pytest_collection_modifyitems(items):
    for item in items:
        if "/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not cards():
                item.add_marker(pytest.mark.skip(reason="no NVIDIA card"))


@pytest.fixture(scope="session")
def library():
    """The built operators. tests/conftest.py has built them, before Paddle was imported."""
    from qinfer.cuda_ops.build_cuda import build_cuda, plan_cuda

    return build_cuda(plan_cuda())


@pytest.fixture(autouse=True)
def on_card(request):
    """The card is the current device and its operators are in use."""
    import paddle

    from qinfer.cuda_ops.cuda import use_cuda

    paddle.set_device("nv:0")
    use_cuda(request.getfixturevalue("library"))
    yield
    table.use(table.REFERENCE)
    paddle.set_device("cpu")
