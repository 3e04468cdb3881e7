"""Cards and the choice of a device, without a card."""

import pytest

from goldens import tiny
from qinfer.core.errors import Unsupported, UsageError
from qinfer.core.hardware import device, start_paddle
from qinfer.core.hardware.card_limits import check_sizes, choose_dtypes
from qinfer.core.hardware.nvidia import Card, visible, wake
from qinfer.plugins.models.qwen2 import Qwen2
from qinfer.plugins.models.qwen3 import Qwen3

CARD = Card(
    index=0,
    name="NVIDIA H100",
    capability=(9, 0),
    memory_total=80 << 30,
    memory_free=79 << 30,
    driver="580",
)
UUIDS = ["GPU-aa11", "GPU-aa22", "GPU-bb33"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("1,7,0", [1]),
        ("GPU-bb", [2]),
        ("GPU-aa,0", []),
        ("-1", []),
        ("1, 2", [1, 2]),
        ("0,0,1", [0]),
    ],
)
def test_visible_devices_are_read_as_cuda_does(choice, expected):
    assert visible(choice, UUIDS) == expected


def test_without_a_card_auto_is_the_processor_and_gpu_an_error():
    assert device.open_device("auto").label == "cpu"
    with pytest.raises(Unsupported, match="no NVIDIA card"):
        device.open_device("gpu")


def test_waking_a_card_where_there_may_be_none():
    thread = wake(63)
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "gpu:x", "gpu:-1", "auto:1"])
def test_unknown_devices(name):
    with pytest.raises(UsageError, match="unknown device"):
        device.open_device(name)


def test_a_card_is_found(monkeypatch):
    monkeypatch.setattr(device, "cards", lambda: [CARD])
    monkeypatch.setattr(device, "cuda_compiler", lambda: None)
    assert device.open_device("auto").kind == "cpu"
    found = device.open_device("gpu:0")
    assert (found.label, found.memory_free, found.features) == ("gpu:0", 79 << 30, {"sm_90"})
    with pytest.raises(UsageError, match="no gpu:1"):
        device.open_device("gpu:1")
    monkeypatch.setattr(device, "cuda_compiler", lambda: "/usr/bin/nvcc")
    assert device.open_device("auto").label == "gpu:0"


def test_dtypes_on_a_card(monkeypatch):
    monkeypatch.setattr(device, "cards", lambda: [CARD])
    card, cpu = device.open_device("gpu"), device.open_device("cpu")
    assert choose_dtypes("bfloat16", "auto", cpu) == ("bfloat16", "float32")
    assert choose_dtypes("float16", "auto", card) == ("float16", "float16")
    assert choose_dtypes("float32", "auto", card) == ("bfloat16", "bfloat16")
    with pytest.raises(Unsupported, match="do not compute in float32"):
        choose_dtypes("bfloat16", "float32", card)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gqa", ""),
        ("qwen3_tied", "heads of 16, 32, .* have 20"),
        ("qwen3_window", "heads of 64, 128 .* have 16"),
        ("odd", "numbers, and this model's have 20"),
        ("narrow", "sixteens, and layers.0.down has 72"),
    ],
)
def test_sizes_that_a_card_does_not_compute(name, said):
    narrow = tiny.Case(name="narrow", intermediate_size=72)
    case = narrow if name == "narrow" else tiny.CASES[name]
    plugin = Qwen3() if case.family == "qwen3" else Qwen2()
    config = plugin.read_config(case.config)
    if not said:
        check_sizes(config, plugin.linear_layers(config))
        return
    with pytest.raises(Unsupported, match=said):
        check_sizes(config, plugin.linear_layers(config))


def test_a_gpu_is_refused_once_paddle_has_been_imported(monkeypatch):
    monkeypatch.delenv(start_paddle.GPU_PLUGIN, raising=False)
    with pytest.raises(Unsupported, match="Paddle was imported before"):
        start_paddle.prepare_paddle("gpu:0")
