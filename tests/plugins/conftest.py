"""Third-party distributions, really built and installed, and the real command run over them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

HEAD = "from qinfer.core.specs import *\nfrom qinfer.core.types import *\n"

MODEL = (
    HEAD
    + """
class P(ModelPlugin):
    info = PluginInfo(
        name="{name}", kind="model", api="1.0", summary="a toy", aliases={aliases!r},
        model_types=("acme",), architectures=("AcmeForCausalLM",),
    )
    @hookimpl
    def read_config(self, raw): return raw["answer"]
    @hookimpl
    def linear_layers(self, config): return []
    @hookimpl
    def weight_rules(self, config): return []
    {build}
"""
)
BUILD = "@hookimpl\n    def build_model(self, config, parts): return print"


def observer(name: str, body: str = "pass", before: str = "", info: str = "") -> str:
    """The source of an observer plugin; ``before`` runs on import."""
    body = textwrap.indent(body, "    ")
    info = info if "api=" in info else f'api="1.0", {info}'
    said = f'info = PluginInfo(name="{name}", kind="observer", {info})'
    return f"{before}\n{HEAD}\nclass P(ObserverPlugin):\n    {said}\n{body}\n"


GOOD = {
    "models": {"acme": MODEL.format(name="acme", aliases=("acme-one",), build=BUILD)},
    "models.aliases": {"acme-one": "acme"},
    "models.reads": {"acme": "acme", "AcmeForCausalLM": "acme"},
    "observers": {
        "watch": observer("watch", info='summary="looks on", aliases=("look",)'),
        "noisy": observer("noisy", before="print('{\"ok\": false}'); print('garbage' * 10000)"),
    },
    "observers.aliases": {"look": "watch"},
}
RIVAL = {
    "models": {"rival": MODEL.format(name="rival", aliases=(), build=BUILD)},
    "models.reads": {"AcmeForCausalLM": "rival"},
    "observers": {
        "watch": observer("watch"),
        "look": observer("look"),
    },
}
BROKEN = {
    "models": {"half": MODEL.format(name="half", aliases=(), build="")},
    "observers": {
        "noimport": observer("noimport", before="import no_such_module_anywhere"),
        "raises": observer("raises", before="1 / 0"),
        "sysexit": observer("sysexit", before="raise SystemExit(7)"),
        "osexit": observer("osexit", before="import os; os._exit(0)"),
        "segfault": observer("segfault", before="import ctypes; ctypes.string_at(0)"),
        "api3": observer("api3", info='api="3.0"'),
        "api0": observer("api0", info='api="0.9"'),
        "minor": observer("minor", info='api="1.99"'),
        "badapi": observer("badapi", info='api="one"'),
        "renamed": observer("other"),
        "noinfo": observer("noinfo", "info = None"),
        "unmarked": observer("unmarked", "def step_done(self, stats): pass"),
        "misspelt": observer("misspelt", "@hookimpl\ndef step_done(self, stat): pass"),
        "unknown": observer("unknown", "@hookimpl\ndef stepdone(self, stats): pass"),
        "foreign": observer("foreign", "@hookimpl\ndef read_config(self, raw): pass"),
        "mismatch": observer("mismatch", info='aliases=("nowhere",)'),
    },
}
HANGING = {
    "observers": {
        "hang": observer("hang", before="import os, time; os.system('sleep 60'); time.sleep(60)"),
    },
}


def write_project(folder: Path, name: str, version: str, groups: Mapping[str, Any]) -> None:
    """A setuptools project whose plugins each are a module of their own."""
    package = name.replace("-", "_").replace(".", "_")
    source = folder / package
    source.mkdir(parents=True)
    (source / "__init__.py").touch()
    lines = [
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
    ]
    for group, plugins in groups.items():
        lines.append(f'[project.entry-points."qinfer.{group}"]')
        for plugin, text in plugins.items():
            module = text
            if group.count(".") == 0:
                module = plugin
                (source / f"m_{plugin.replace('-', '_')}.py").write_text(text)
            lines.append(f'"{plugin}" = "{package}.m_{module.replace("-", "_")}:P"')
    lines.append(f'[tool.setuptools]\npackages = ["{package}"]')
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders for PYTHONPATH: ``good``, ``rival``, ``broken`` and ``hanging`` hold an installed
    distribution each, ``damaged`` two whose metadata is unusable."""
    root = tmp_path_factory.mktemp("dists")
    projects = {
        "good": ("acme-good", "1.2", GOOD),
        "rival": ("Rival.Plugins", "0.3", RIVAL),
        "broken": ("acme-broken", "0.1", BROKEN),
        "hanging": ("acme-hanging", "0.1", HANGING),
    }
    found = {}
    for site, (name, version, groups) in projects.items():
        write_project(root / "src" / site, name, version, groups)
        found[site] = root / site
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        pip += ["--no-build-isolation", "--disable-pip-version-check", "--target"]
        subprocess.run([*pip, str(root / site), str(root / "src" / site)], check=True)
    found["damaged"] = root / "damaged"
    for name, entries in {
        "nameless-1.0": "[qinfer.observers]\nghost = ghost:P\n",
        "malformed-1.0": "[qinfer.observers]\nno equals sign here\n",
    }.items():
        folder = found["damaged"] / f"{name}.dist-info"
        folder.mkdir(parents=True)
        (folder / "entry_points.txt").write_text(entries)
    text = "Metadata-Version: 2.1\nName: malformed\nVersion: 1.0\n"
    (found["damaged"] / "malformed-1.0.dist-info" / "METADATA").write_text(text)
    return found


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def python(sites: Mapping[str, Path], tmp_path: Path) -> Run:
    """Run python with ``args`` and the named sites installed, away from the repository."""

    def run(*args: str, on: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(str(sites[name]) for name in on.split())
        env = {**os.environ, "PYTHONPATH": path, **environment}
        command = [sys.executable, *args]
        both = {"capture_output": True, "text": True}
        return subprocess.run(command, env=env, cwd=tmp_path, check=False, timeout=120, **both)

    return run


@pytest.fixture
def qinfer(python: Run) -> Run:
    """Run the qinfer command."""
    return lambda *args, **options: python("-m", "qinfer", *args, **options)


SELECT = """
import sys
from qinfer.core.errors import QinferError
from qinfer.core.registry.selection import detect_model, open_session, resolve
try:
    what, *rest = sys.argv[1:]
    if what == "detect":
        import json
        record = detect_model(json.loads(rest[0]))
        print(record.reference)
    else:
        record = resolve(what, rest[0])
        hooks = open_session([record])
        print(record.reference, hooks.plugin(what).name)
        if rest[1:]:
            print(hooks.read_config({"answer": 42}))
except QinferError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def select(python: Run) -> Run:
    """Resolve and load a plugin (KIND REFERENCE), or detect one ("detect" CONFIG)."""
    return lambda *args, **options: python("-c", SELECT, *args, **options)
