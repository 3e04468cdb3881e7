"""Folders in foreign formats, made of what compressed-tensors wrote, and the logits they give."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from goldens.steps import step_logits
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.progress import NoProgress
from qinfer.core.session import load_model, select
from qinfer.core.types import RunConfig

FOREIGN = Path(__file__).parents[1] / "goldens" / "foreign"
PROMPT = [7, 3, 40, 11, 60, 22, 5, 33, 18, 2, 49, 27]
BASE = "model.layers.0."


def open_folder(folder, quant="auto"):
    run = RunConfig(model=str(folder), quant=quant)
    return load_model(run, select(run), folder, NoProgress())


def logits_of(folder):
    return step_logits(open_folder(folder), PROMPT, [len(PROMPT)])


def read(name):
    checkpoint = Checkpoint(FOREIGN / name)
    return {key: np.array(checkpoint.read(key)) for key in checkpoint.names()}


def write(folder, name, tensors, quantization_config, **files):
    """A folder with a fixture's config.json, other tensors and quantization_config."""
    config = json.loads((FOREIGN / name / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    return folder


def linears(tensors, suffix):
    return [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
