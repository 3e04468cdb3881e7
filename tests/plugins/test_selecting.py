"""Which plugin a reference or a config.json means, and what stops a selected one."""

from __future__ import annotations

import importlib.util
import json

import pytest


@pytest.mark.parametrize(
    "reference", ["acme", "acme-one", "acme-good:acme", "Acme_Good:acme", "acme-good:acme-one"]
)
def test_a_good_plugin_is_found_by_each_of_its_names(select, reference):
    done = select("model", reference, on="good broken damaged")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "acme-good:acme acme\n"


def test_unknown_names_say_what_is_near_and_what_there_is(select):
    done = select("model", "acmee", on="good")
    assert done.returncode == 2
    assert 'no model plugin is called "acmee"; did you mean "acme"?' in done.stderr
    assert "qwen2 (qinfer-paddle)" in done.stderr


def test_a_name_of_another_kind_is_pointed_out(select):
    done = select("model", "wint8")
    assert done.returncode == 2
    assert "a plugin of that name is of kind quant" in done.stderr


def test_one_name_in_two_distributions_is_ambiguous(select):
    done = select("observer", "watch", on="good rival")
    assert done.returncode == 2
    assert done.stderr.startswith("AmbiguousPlugin")
    assert "acme-good:watch, Rival.Plugins:watch" in done.stderr
    done = select("observer", "rival-plugins:watch", on="good rival")
    assert done.stdout == "Rival.Plugins:watch watch\n", done.stderr


def test_a_name_wins_over_an_alias(select):
    assert select("observer", "look", on="good").stdout.startswith("acme-good:watch")
    assert select("observer", "look", on="good rival").stdout.startswith("Rival.Plugins:look")


@pytest.mark.parametrize("config", [{"architectures": ["AcmeForCausalLM"]}, {"model_type": "acme"}])
def test_detection(select, config):
    done = select("detect", json.dumps(config), on="good broken")
    assert done.stdout == "acme-good:acme\n", done.stderr


def test_detection_by_several_is_ambiguous(select):
    config = json.dumps({"architectures": ["AcmeForCausalLM"], "model_type": "acme"})
    done = select("detect", config, on="good rival")
    assert done.returncode == 2
    assert "acme-good:acme, Rival.Plugins:rival" in done.stderr
    assert "--plugin acme-good:acme" in done.stderr


@pytest.mark.parametrize("config", ['{"architectures": ["X"], "model_type": "x"}', "{}"])
def test_detection_by_none_says_what_was_tried(select, config):
    done = select("detect", config, on="good")
    assert done.returncode == 5
    assert done.stderr.startswith("BadCheckpoint")
    assert "acme-good:acme reads AcmeForCausalLM, acme" in done.stderr
    assert "list-plugins" in done.stderr


BROKEN = {
    "noimport": ["cannot be loaded: ModuleNotFoundError", "Install what provides the module"],
    "raises": ["cannot be loaded: ZeroDivisionError: division by zero"],
    "sysexit": ["cannot be loaded: SystemExit: 7"],
    "api3": ["speaks plugin API 3.0", "Upgrade qinfer-paddle"],
    "api0": ["speaks plugin API 0.9", "Upgrade acme-broken"],
    "minor": ["speaks plugin API 1.99", "Upgrade qinfer-paddle"],
    "badapi": ["api='one'"],
    "renamed": ["name='other'", "'renamed'"],
    "noinfo": ["None where a PluginInfo is needed"],
    "unmarked": ['defines "step_done" without @hookimpl'],
    "misspelt": ["{'stat'}", "step_done"],
    "unknown": ['"stepdone"', 'did you mean "step_done"?'],
    "foreign": ['"read_config"', "which no observer plugin has"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_selected_broken_plugin_stops_with_its_name_and_a_remedy(select, name):
    done = select("observer", name, on="good broken")
    assert done.returncode == 3
    start = f'BrokenPlugin observer plugin "{name}" (acme-broken 0.1) '
    assert done.stderr.startswith(start), done.stderr
    assert "Upgrade" in done.stderr or "Install" in done.stderr
    for text in BROKEN[name]:
        assert text in done.stderr


def test_a_missing_hook_is_named(select):
    done = select("model", "half", on="broken")
    assert done.returncode == 3
    assert "does not implement the required build_model" in done.stderr


def test_a_wrong_return_type_names_the_plugin(select):
    done = select("model", "acme", "call", on="good")
    assert done.returncode == 3
    assert 'model plugin "acme" (acme-good 1.2) returned from read_config' in done.stderr
    assert "an int where ModelConfig is needed" in done.stderr


needs_run = pytest.mark.skipif(
    importlib.util.find_spec("qinfer.core.cli.run") is None, reason="the run command is not there"
)


@needs_run
@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--plugin", "nosuch"], 2, 'no model plugin is called "nosuch"'),
        (["--plugin", "acme", "--quant", "nosuch"], 2, 'no quant plugin is called "nosuch"'),
        (["--plugin", "watch"], 2, "a plugin of that name is of kind observer"),
    ],
)
def test_run_reports_selection_errors_before_anything_else(qinfer, options, code, text):
    done = qinfer("run", *options, "--model", "nowhere", "x", on="good broken")
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("qinfer: error: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr
