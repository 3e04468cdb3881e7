"""``--model paddlenlp:NAME`` against a stand-in for PaddleNLP's resolver and its hub.

The stand-in has the resolver's interface and fetches from a server on this computer, with the paths
that PaddleNLP's hub has; PaddleNLP itself is 1.8 GB and is not installed here.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
import types
import urllib.error
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from goldens import tiny
from qinfer.core.checkpoint.source import resolve_config, resolve_model
from qinfer.core.errors import BadCheckpoint, QinferError, Unsupported
from qinfer.core.progress import NoProgress
from qinfer.core.quantize.quantize import quantize
from qinfer.core.quantize.settings import QuantizeSettings
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig
from qinfer.cuda_ops import table

NAME = "Qwen/Qwen2-tiny-A8W8C8"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model as PaddleNLP's quantiser writes it."""
    folder = tmp_path_factory.mktemp("hub")
    source = tiny.write_checkpoint(folder / "plain", tiny.CASES["gqa"])
    settings = QuantizeSettings(
        model=str(source), quant="a8w8c8", format="paddlenlp", method="absmax", tokens=200
    )
    output = folder / "models" / "community" / NAME
    output.parent.mkdir(parents=True)
    quantize(settings, output, NoProgress())
    return output


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """Serves the model, and installs the stand-in; returns the files asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(model.parents[3]))

        def log_message(self, form, *arguments):
            asked.append(self.path.rpartition("/")[2])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/models/community"

    def resolve_file_path(repo_id, filenames, **options):
        path = tmp_path / "cache" / repo_id / filenames[0]
        if path.exists():
            return str(path)
        try:
            with urllib.request.urlopen(f"{address}/{repo_id}/{filenames[0]}") as answer:
                body = answer.read()
        except urllib.error.HTTPError:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return str(path)

    install(monkeypatch, resolve_file_path)
    yield asked
    server.shutdown()
    server.server_close()


def install(monkeypatch, resolve_file_path):
    module = types.ModuleType("paddlenlp.utils.download")
    module.resolve_file_path = resolve_file_path
    for name in ("paddlenlp", "paddlenlp.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_folder_is_what_the_hub_has(hub, model):
    folder = resolve_model(f"paddlenlp:{NAME}")
    got, there = ({path.name for path in f.iterdir()} for f in (folder, model))
    assert there - got == {"quantize-report.json"}
    assert all((folder / name).read_bytes() == (model / name).read_bytes() for name in got)
    assert not [name for name in hub if "pdparams" in name]
    hub.clear()
    assert resolve_model(f"paddlenlp:{NAME}") == folder
    assert not got & set(hub)  # what is there is not downloaded again


def test_it_runs(hub, monkeypatch):
    monkeypatch.setenv("QINFER_OPERATORS", "reference")
    folder = resolve_model(f"paddlenlp:{NAME}")
    run = RunConfig(model=str(folder))
    opened = load_model(run, select(run), folder, NoProgress())
    table.use(table.REFERENCE)
    assert opened.stats.layers_by_scheme == {"a8w8": 12, "none": 1}
    assert opened.plan.kv_cache == "int8"
    assert opened.plan.kv_scales.shape == (3, 2, 2)


def test_config_alone_for_info(hub):
    from qinfer.core.cli.info import command

    assert resolve_config(f"paddlenlp:{NAME}").name == "config.json"
    assert hub == ["config.json"]
    done = CliRunner().invoke(command, [f"paddlenlp:{NAME}"], standalone_mode=False)
    assert done.exception is None
    assert set(hub) == {"config.json"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Qwen/Qwen2-none", "has no model 'Qwen/Qwen2-none'"),
        ("", "is no name"),
        ("../../etc", "is no name"),
        ("a b", "is no name"),
    ],
)
def test_names_that_are_none(hub, name, words):
    with pytest.raises(BadCheckpoint, match=words) as caught:
        resolve_model(f"paddlenlp:{name}")
    assert caught.value.remedy


@pytest.mark.skipif(find_spec("paddlenlp") is not None, reason="PaddleNLP is installed here")
def test_without_paddlenlp():
    with pytest.raises(Unsupported, match="is not installed") as caught:
        resolve_model(f"paddlenlp:{NAME}")
    assert "qinfer-paddle[paddlenlp]" in caught.value.remedy


def test_a_paddlenlp_that_does_not_import(monkeypatch, tmp_path):
    package = tmp_path / "paddlenlp"
    package.mkdir()
    (package / "__init__.py").write_text("import datasets_of_another_year\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Unsupported, match=r"cannot be imported .*datasets_of_another_year"):
        resolve_model(f"paddlenlp:{NAME}")


def served(monkeypatch, tmp_path, **files):
    """A resolver over files of these contents (dots in names written as two underscores)."""
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")

    def resolve_file_path(repo_id, filenames, **options):
        path = tmp_path / filenames[0]
        return str(path) if path.exists() else None

    install(monkeypatch, resolve_file_path)


INDEX = "model__safetensors__index__json"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no weights as safetensors.*pickle"),
        ({INDEX: {"weight_map": {"a": "../../../etc/passwd"}}}, "lists '../../../etc/passwd'"),
        ({INDEX: {"weight_map": {"a": "x.pdparams"}}}, "lists 'x.pdparams'"),
        ({INDEX: {"weight_map": {"a": 5}}}, "lists 5"),
        ({INDEX: {"weight_map": {}}}, "lists no files"),
        ({INDEX: {"weight_map": {"a": "m-1.safetensors"}}}, "does not have"),
    ],
)
def test_hubs_with_bad_contents(monkeypatch, tmp_path, files, words):
    served(monkeypatch, tmp_path, config__json={}, **files)
    with pytest.raises(QinferError, match=words) as caught:
        resolve_model(f"paddlenlp:{NAME}")
    assert caught.value.remedy


def test_a_broken_connection_is_said(monkeypatch):
    def resolve_file_path(repo_id, filenames, **options):
        raise OSError("Can't load the model for\n'x'")

    install(monkeypatch, resolve_file_path)
    with pytest.raises(BadCheckpoint, match=r"hub: Can't load the model for 'x'\.") as caught:
        resolve_model(f"paddlenlp:{NAME}")
    assert "PPNLP_HOME" in caught.value.remedy


def test_files_of_a_single_shard_and_of_several_cards(monkeypatch, tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    parts = {f"act_scales_{rank}__json": {} for rank in range(3)}
    served(monkeypatch, tmp_path, config__json={}, **parts)
    asked = []
    inner = sys.modules["paddlenlp.utils.download"].resolve_file_path

    def watched(repo_id, filenames, **options):
        asked.append(filenames[0])
        return inner(repo_id, filenames, **options)

    install(monkeypatch, watched)
    assert resolve_model(f"paddlenlp:{NAME}") == tmp_path
    assert {f"act_scales_{rank}.json" for rank in range(4)} <= set(asked)
    assert load_file(tmp_path / "model.safetensors")["a"].size == 2
