"""What a build was made of: it names its folder, and says what has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from qinfer.core.types import NEVER_BUILT

FILE = "facts.json"
"""In the folder of a build: what it was made of."""

Facts = Mapping[str, str]
"""What went into a build, by a name that reads well after "changed: "."""


def digest(facts: Facts) -> str:
    """Twenty hexadecimal digits that other facts do not share."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def files_digest(paths: Iterable[Path]) -> str:
    """Of the names and contents of files."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def write(facts: Facts, folder: Path) -> None:
    """Keep them with the build."""
    (folder / FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def why_again(facts: Facts, earlier: Iterable[Path]) -> str:
    """Why none of the builds in these folders will do: the names of the facts in which the newest
    differs, or that there is none.
    """
    made = sorted(
        (path for folder in earlier if (path := folder / FILE).is_file()),
        key=lambda path: path.stat().st_mtime,
    )
    if not made:
        return NEVER_BUILT
    try:
        old = json.loads(made[-1].read_text(encoding="utf-8"))
    except ValueError:
        return "the last build is damaged"
    changed = [name for name in facts if old.get(name) != facts[name]]
    return (
        f"changed since the last build: {', '.join(changed)}" if changed else "damaged or deleted"
    )
