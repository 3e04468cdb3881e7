"""The folders, the declared packages and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "qinfer": "qinfer",
    "core": "qinfer.core",
    "plugins": "qinfer.plugins",
    "cuda_ops": "qinfer.cuda_ops",
}
FOR_MODELS = {
    "types",
    "specs",
    "protocols",
    "errors",
    "config",
    "decoder_weights",
    "text.chat",
    "rotary",
}


class Import(NamedTuple):
    """One import: where it stands, what it names, and whether importing the file runs it."""

    where: str
    module: str
    eager: bool


def module_of(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [FOLDERS[folder], *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in a file. ``from a import b`` counts as "a.b": b may be a module."""
    is_package = path.name == "__init__.py"
    package = module_of(path) if is_package else module_of(path).rpartition(".")[0]

    def walk(node: ast.AST, eager: bool) -> Iterator[Import]:
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(where, alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            yield from (Import(where, f"{base}.{alias.name}", eager) for alias in node.names)
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, eager and not lazy and not typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def imports_below(folder: str) -> Iterator[Import]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield from imports_of(path)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def places(found: Iterator[Import]) -> list[str]:
    return [f"{item.where} imports {item.module}" for item in found]


def test_declared_packages_are_the_folders_that_are_packages():
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inits = (path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
    assert sorted(declared["packages"]) == sorted(map(module_of, inits))
    assert {folder: name for name, folder in declared["package-dir"].items()} == FOLDERS


def test_every_folder_with_modules_is_a_package():
    modules = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert [p for p in modules if not (p.parent / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", ["core", "plugins", "cuda_ops"])
def test_a_bare_import_from_the_root_is_refused(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"import this package as 'qinfer.{name}'" in done.stderr


def test_the_walk_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "core" / "cli" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\n"
        "try:\n    import h\nexcept ImportError: pass\n"
        "if TYPE_CHECKING:\n    import i\ndef f():\n    import j\n"
    )
    found = [(item.module, item.eager) for item in imports_of(file)]
    eager = ["a.b", "c.d", "qinfer.core.cli.e", "qinfer.core.f.g", "h"]
    assert found == [(name, True) for name in eager] + [("i", False), ("j", False)]


def test_core_knows_no_plugin_and_no_operator():
    banned = ("qinfer.plugins", "qinfer.cuda_ops")
    found = (i for i in imports_below("core") if any(is_in(i.module, name) for name in banned))
    assert places(found) == []


@pytest.mark.parametrize("folder", ["core", "qinfer"])
def test_core_does_not_load_paddle_by_being_imported(folder):
    found = (i for i in imports_below(folder) if i.eager and is_in(i.module, "paddle"))
    assert places(found) == []


@pytest.mark.parametrize("kind", ["models", "quant", "backends"])
def test_no_plugin_imports_one_of_another_kind(kind):
    own = f"qinfer.plugins.{kind}"
    found = (
        i
        for i in imports_below(f"plugins/{kind}")
        if is_in(i.module, "qinfer.plugins") and not is_in(i.module, own)
    )
    assert places(found) == []


def test_operators_import_only_the_vocabulary():
    building = (
        "errors",
        "hardware.machine",
        "hardware.nvidia",
        "paths",
        "store",
    )  # what compiling into the cache takes
    allowed = (
        "qinfer.core.types",
        "qinfer.cuda_ops",
        *(f"qinfer.core.{name}" for name in building),
    )
    found = (
        i
        for i in imports_below("cuda_ops")
        if is_in(i.module, "qinfer") and not any(is_in(i.module, name) for name in allowed)
    )
    assert places(found) == []


def test_models_import_only_what_describes_models():
    allowed = [f"qinfer.core.{name}" for name in FOR_MODELS]
    found = (
        i
        for i in imports_below("plugins/models")
        if is_in(i.module, "qinfer.core") and not any(is_in(i.module, name) for name in allowed)
    )
    assert places(found) == []
