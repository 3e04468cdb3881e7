"""The same GGUF in other number formats, so that llama.cpp is measured at equal bytes too.

The values are those of the given file, de-quantised: F32 and F16 hold them exactly (or nearly),
Q8_0 and Q4_1 are rounded again. Needs the ``gguf`` package (the project's ``demo`` extra).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("F32", "F16", "Q8_0", "Q4_1")
HEADS = ("token_embd.weight", "output.weight")


def rewritten(source: Path, name: str, folder: Path) -> Path:
    """``source`` with its matrices in format ``name``, made once and kept in ``folder``."""
    target = folder / f"{source.stem}-as-{name}.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        _rewrite(source, name, part)
        part.replace(target)
    return target


def readable_bytes(path: Path) -> int:
    """Bytes of tensors a decoded token reads: all, but for an embedding that isn't the head."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in _reader(path).tensors}
    embedding = tensors["token_embd.weight"] if "output.weight" in tensors else 0
    return sum(tensors.values()) - embedding


def _rewrite(source: Path, name: str, target: Path) -> None:
    import gguf

    reader = _reader(source)
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    writer = gguf.GGUFWriter(target, architecture)
    _copy_fields(reader, writer)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{name}" if name != "F32" else "ALL_F32"])
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim == 1:  # norms stay in float32, as in every GGUF
            writer.add_tensor(tensor.name, values)
        else:
            kind = gguf.GGMLQuantizationType[_kind(tensor.name, name)]
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(tensor: str, name: str) -> str:
    """llama.cpp's own quantiser, too, leaves the head of so narrow a Q4_1 in Q8_0."""
    return "Q8_0" if name == "Q4_1" and tensor in HEADS else name


def _copy_fields(reader: Any, writer: Any) -> None:
    """Hyperparameters and tokenizer as they are, but for what the writer writes itself."""
    import gguf

    own = {gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE}
    for field in reader.fields.values():
        if field.name in own or field.name.startswith("GGUF."):
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)


def _reader(path: Path) -> Any:
    import gguf

    return gguf.GGUFReader(path)
