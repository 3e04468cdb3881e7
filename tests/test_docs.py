"""README and docs/ hold against the code: commands, options, links, hooks."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from qinfer import LLM
from qinfer.core.cli import COMMANDS, group
from qinfer.core.errors import QinferError
from qinfer.core.params import PARAM_NAMES
from qinfer.core.registry.contract import hook_names
from qinfer.core.specs import GROUPS, REQUIRED, SPECS

ROOT = Path(__file__).resolve().parents[1]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "NOTES.md", "CHANGELOG.md")]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*TOP, *DOCS, *sorted((ROOT / "examples").rglob("*.md"))]
RUN = (
    "pip install '.[cpu,demo]' && "
    'qinfer run --plugin qwen2 --quant fp8 "What is the capital of France?"'
)
TEST = "pip install -e '.[test]' && pytest"
FOREIGN = {"--no-deps", "--check", "--strict", "--tool", "--kernel-name"}
"""Options of other programs that the pages name."""


def commands() -> dict[str, click.Command]:
    return {name: import_module(module).command for name, (module, _) in COMMANDS.items()}


def options(command: click.Command) -> set[str]:
    names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return {name for name in names if name.startswith("-")} | {"--help", "-h"}


def blocks(page: Path) -> list[str]:
    """The fenced code blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(("mark", "command"), [("run", RUN), ("test", TEST)])
def test_readme_gives_each_command_on_one_line(mark, command):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- ci: {mark} -->\n```sh\n{command}\n```\n" in text


def test_ci_runs_readmes_test_command():
    done = subprocess.run(
        [ROOT / ".ci" / "run", "--show"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{TEST}\n"


def calls() -> Iterator[tuple[str, str]]:
    """Every ``qinfer …`` line of a code block, with the page it is on."""
    for page in PAGES:
        for block in blocks(page):
            for line in block.splitlines():
                for part in re.split(r"&&|\|", line.removeprefix("$ ")):
                    if part.strip().startswith("qinfer "):
                        yield ids(page), part.strip()


@pytest.mark.parametrize(("page", "line"), sorted(set(calls())))
def test_calls_in_code_blocks_use_options_that_exist(page, line):
    words = shlex.split(line, comments=True)[1:]
    known = commands()
    command = known.get(words[0])
    given = {word for word in words if re.fullmatch(r"--?[a-z][\w-]*", word)}
    assert command is not None or words[0].startswith("-")
    assert given <= options(command or group)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_named_exist(page):
    known = set.union(options(group), *map(options, commands().values())) | FOREIGN
    text = "\n".join(
        line
        for line in page.read_text(encoding="utf-8").splitlines()
        if not re.match(r"\s*(pip|python|PYTHONPATH)", line)
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", text)))
    assert named - known == set()


def test_commands_page_lists_every_command():
    listed = blocks(ROOT / "docs" / "commands.md")[0].splitlines()
    assert listed == [f"qinfer {name:13} {line}" for name, (_, line) in COMMANDS.items()]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_page_has_every_option(name):
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    text = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    for param in commands()[name].params:
        hidden = getattr(param, "hidden_names", set())
        for option in param.opts:
            if option.startswith("-") and (option not in hidden or "_" not in option):
                assert re.search(rf"`{option}[ `]", text), option


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [name for name in local if name and not (page.parent / name).exists()] == []


def sections() -> dict[str, str]:
    """docs/plugins.md by heading."""
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_python_page_has_every_argument():
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    named = re.search(r"`LLM\(model=None, \*, ([^)]*)\)`", page)
    assert named
    arguments = list(inspect.signature(LLM).parameters)
    assert sorted(re.findall(r"\w+", named[1])) == sorted(set(arguments) - {"model"})
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## `SamplingParams`")[2], re.M)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed >= PARAM_NAMES


HEADINGS = {
    "model": "Hooks of a model",
    "quant": "Hooks of a quant scheme",
    "backend": "Hooks of a backend",
    "observer": "Hooks of an observer",
}


@pytest.mark.parametrize("kind", SPECS)
def test_plugins_page_describes_every_hook(kind):
    every = set(hook_names(kind)) & set.intersection(*(set(hook_names(k)) for k in SPECS))
    for name in hook_names(kind):
        section = sections()["Hooks of every kind" if name in every else HEADINGS[kind]]
        arguments = getattr(SPECS[kind], name).__code__.co_varnames[1:]
        row = re.search(rf"^\| `{name}\({', '.join(arguments)}\)` \| (.*) \|$", section, re.M)
        assert row, f"{name}({', '.join(arguments)})"
        if REQUIRED[kind] and name not in every:
            assert row[1].startswith("yes" if name in REQUIRED[kind] else "no"), name


def test_plugins_page_has_every_group_and_the_diagram_every_hook():
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in GROUPS.values())
    diagram = (ROOT / "docs" / "lifecycle.svg").read_text(encoding="utf-8")
    # No ordinary run calls these.
    unrelated = {"export", "plan_export", "open_export", "plan_operators", "open_store"}
    hooks = {name for kind in SPECS for name in hook_names(kind)} - unrelated
    assert [name for name in sorted(hooks) if f">{name}</text>" not in diagram] == []


def test_exit_codes_are_those_of_the_errors():
    def below(kind: type[QinferError]) -> Iterator[type[QinferError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    codes = {
        kind.exit_code for kind in below(QinferError) if kind.__module__ == "qinfer.core.errors"
    }
    for page in ("README.md", "docs/commands.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)} >= codes
