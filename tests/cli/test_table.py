"""Tables in wide and narrow terminals."""

import sys

import pytest

from qinfer.core.cli.table import table

ROWS = [["quant", "prefill tok/s", "decode tok/s"], ["none", "441.2", "85.0"], ["a8w8", "9", "10"]]
WIDE = """\
quant  prefill tok/s  decode tok/s
none           441.2          85.0
a8w8               9            10"""
TURNED = """\
quant           none  a8w8
prefill tok/s  441.2     9
decode tok/s    85.0    10"""


@pytest.mark.parametrize(
    ("columns", "terminal", "shown"),
    [(34, True, WIDE), (33, True, TURNED), (5, True, TURNED), (5, False, WIDE)],
)
def test_a_table_is_turned_over_where_it_does_not_fit(monkeypatch, columns, terminal, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert table(ROWS) == shown


def test_a_table_that_turned_over_is_wider_stays(monkeypatch):
    monkeypatch.setenv("COLUMNS", "5")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    rows = [["n", "x"], *([str(n), "1"] for n in range(10))]
    assert table(rows).splitlines()[0] == "n  x"
