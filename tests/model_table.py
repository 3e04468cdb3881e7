"""The table of docs/models.md, from the published configurations.

PYTHONPATH=tests python -m model_table        # writes it
"""

from __future__ import annotations

import re
from pathlib import Path

from qinfer.core.published import MODELS, Published

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
SCHEMES = ("none", "wint8", "fp8", "wint4")
_BETWEEN = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.S)


def current() -> str:
    """The table as the page has it."""
    found = _BETWEEN.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found[0]


def table() -> str:
    head = ("model", "plugin", "parameters (billions)", "context", *SCHEMES, "cache")
    rows = [head, ("---",) * 4 + ("---:",) * (len(SCHEMES) + 1), *map(_row, MODELS)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(model: Published) -> tuple[str, ...]:
    from qinfer.core.model_card import model_card

    card = model_card(model.config, "", SCHEMES)
    count = f"{card.parameters / 1e9:.2f}"
    if card.active_parameters != card.parameters:
        count += f" ({card.active_parameters / 1e9:.2f})"
    sizes = [f"{card.needs[name].parameter_bytes / 2**30:.1f}" for name in SCHEMES]
    cache = f"{card.needs['none'].cache_bytes_per_token * 1000 / 2**20:.0f}"
    context = f"{card.config.max_position_embeddings:,}"
    return model.name, f"`{card.plugin}`", count, context, *sizes, cache


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_BETWEEN.sub(lambda _: table(), text), encoding="utf-8")
