"""``--plot`` is looked at before the work that it would show."""

from importlib import import_module

import pytest
from click.testing import CliRunner

from qinfer.core.cli.plot import save
from qinfer.core.errors import QinferError, UsageError

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.mark.parametrize("name", ["bench", "eval", "quantize"])
@pytest.mark.parametrize(("file", "words"), [("x.pdf", "neither a PNG"), ("no/x.png", "no folder")])
def test_a_file_that_cannot_be_drawn(tmp_path, name, file, words):
    command = import_module(f"qinfer.core.cli.{name}").command
    arguments = ["--model", str(tmp_path / "none"), "--plot", str(tmp_path / file)]
    arguments += ["--output", str(tmp_path / "new")] if name == "quantize" else []
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_a_failed_drawing_leaves_nothing(tmp_path):
    (tmp_path / "x.svg").mkdir()
    with pytest.raises(QinferError, match=r"cannot write .*x\.svg: Is a directory") as caught:
        save(pyplot.figure(), tmp_path / "x.svg")
    assert "has room" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["x.svg"]
