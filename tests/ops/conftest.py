"""Every operator test runs over every version there is here."""

import pytest

from qinfer.core.errors import Unsupported
from qinfer.cuda_ops import table


@pytest.fixture(scope="session")
def native():
    """The native operators, loaded; skips where they cannot be built."""
    from qinfer.cuda_ops.build import build, plan_build
    from qinfer.cuda_ops.native import load

    try:
        load(build(plan_build()))
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def version(request):
    """Which version of the operators the test runs."""
    if request.param == "cpu":
        request.getfixturevalue("native")
    table.use(request.param)
    yield request.param
    table.use(table.REFERENCE)
