"""An exported folder under paddle.inference alone: FOLDER $(qinfer build-ops) TOKEN_ID..."""

import json
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import inference
from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I8": "int8"}
STEPS = 16


def parameters(path: Path) -> dict[str, paddle.Tensor]:
    """The tensors of a safetensors file, mapped."""
    data = np.memmap(path, np.uint8, "c")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    entries = json.loads(data[8:start].tobytes())
    del entries["__metadata__"]
    for name, entry in entries.items():
        first, end = (start + offset for offset in entry["data_offsets"])
        raw = paddle.from_dlpack(np.asarray(data[first:end]))
        entries[name] = raw.view(TYPES[entry["dtype"]]).reshape(entry["shape"])
    return entries


def main(folder: Path, library: str, *tokens: int) -> None:
    """Continue the tokens and print the new ones."""
    load_op_meta_info_and_register_op(library)
    predictor = inference.create_predictor(inference.Config(str(folder / "program.json"), ""))
    inputs = parameters(folder / "parameters.safetensors")
    cache = json.loads((folder / "qinfer.json").read_text())["cache"]
    blocks = (len(tokens) + STEPS) // cache["block_size"] + 1
    shape = [blocks, cache["block_size"], cache["num_kv_heads"], cache["head_dim"]]
    for layer in range(cache["num_layers"]):
        inputs[f"cache.{layer}.keys"] = paddle.zeros(shape).astype(cache["dtype"])
        inputs[f"cache.{layer}.values"] = paddle.zeros(shape).astype(cache["dtype"])
    done, new = 0, np.array(tokens, np.int64)
    for _ in range(STEPS):
        places = np.arange(done, done + len(new))
        step = {"token_ids": new, "positions": places, "slot_mapping": places}
        inputs |= {name: paddle.to_tensor(value) for name, value in step.items()}
        inputs["logit_rows"] = paddle.to_tensor([len(new) - 1])
        inputs["query_starts"] = paddle.to_tensor([0, len(new)], "int32")
        inputs["seq_lens"] = paddle.to_tensor([done + len(new)], "int32")
        inputs["block_tables"] = paddle.to_tensor([list(range(blocks))], "int32")
        for name in predictor.get_input_names():
            predictor.get_input_handle(name).share_external_data(inputs[name])
        predictor.run()
        logits = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
        done, new = done + len(new), logits.argmax(-1)
        print(*new, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
