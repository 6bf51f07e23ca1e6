"""A GGUF file with the edits in it.

Where the base is a GGUF file itself, its metadata and all untouched tensors are copied byte for byte, quantised as they
are, and only the edited matrices are written anew. For any other base llama.cpp's own converter is run on the merged
checkpoint, if it is there. Either way the file is read back and compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.edits.edit import Edit
from roseedit.edits.export.card import write_card
from roseedit.edits.export.common import (
    Exported,
    base_path,
    check_together,
    new_folder,
    summed_changes,
    write_sidecar,
)
from roseedit.edits.export.measure import survival
from roseedit.edits.export.merged import precision, save_merged
from roseedit.edits.files import check_base
from roseedit.edits.live import live_edits
from roseedit.errors import ExportError, refusal
from roseedit.models.embedded import EMBEDDED, find_parts, joined_parts
from roseedit.models.load import LoadedModel, load_model

FILE = "model.gguf"
CONVERTER = "convert_hf_to_gguf.py"
_NAMES = {torch.float32: ("F32", "f32"), torch.float16: ("F16", "f16"), torch.bfloat16: ("BF16", "bf16")}


def export_gguf(
    edits: Sequence[Edit],
    out: str | Path,
    loaded: LoadedModel,
    *,
    base: str | None = None,
    dtype: str | None = None,
    measure: bool = True,
) -> Exported:
    """Write the edited model as `model.gguf`.

    Args:
        edits: Edits of one base.
        out: A new or empty folder.
        loaded: The base, left as it is.
        base: A `.gguf` file that the base came from, where its name does not say it.
        dtype: Precision of the edited matrices; left out: that of the loaded base. All others keep theirs.
        measure: Ask the file that was written the edit prompts.

    Returns:
        What was made.

    Raises:
        ExportError: Neither a GGUF base nor llama.cpp's converter, a matrix that the file has no counterpart of, or a
            file that does not hold what it should when it is read back.
        WrongBaseError: The model is not the edits' base.
    """
    check_together(edits)
    for edit in edits:
        check_base(edit, loaded)
    wanted = precision(dtype, loaded)
    model = base_path(edits, base)
    with new_folder(out) as folder:
        target = folder / FILE
        with _source(base if base and base.endswith(".gguf") else loaded.name) as source:
            if source is None:
                _convert(edits, target, loaded, wanted)
            else:
                write_edited(source, target, replaced_weights(source, edits, loaded), wanted)
            copied = source is not None
        again = load_model(str(target), dtype="float32", device="cpu")
        compare(edits, again, loaded, wanted, copied=copied)
        figures: dict[str, Any] = {"dtype of the edited matrices": _NAMES[wanted][0], "bytes": target.stat().st_size}
        if measure:
            figures |= survival(loaded, again, edits).as_mapping()
        write_sidecar(folder, edits, figures=figures)
        write_card(folder, edits, model, "gguf", figures)
    return Exported("gguf", Path(out), model, figures)


@contextmanager
def _source(name: str) -> Iterator[Path | None]:
    """The GGUF file that a base came from, or None."""
    if name in EMBEDDED:
        with joined_parts(find_parts(EMBEDDED[name])) as path:
            yield path
    else:
        yield Path(name) if name.endswith(".gguf") else None


def replaced_weights(source: Path, edits: Sequence[Edit], loaded: LoadedModel) -> dict[str, Tensor]:
    """The edited matrices as the file stores them.

    Args:
        source: The base's GGUF file.
        edits: The edits.
        loaded: The base.

    Returns:
        Float32 matrices by their names in the file.

    Raises:
        ExportError: A matrix without counterpart, or one that the file holds in an unknown arrangement.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    stored = {t.name: t for t in reader.tensors}
    config = loaded.model.config
    heads = (getattr(config, "num_attention_heads", 1), getattr(config, "num_key_value_heads", None))
    out = {}
    for name, change in summed_changes(edits).items():
        target = _counterpart(reader, name, loaded.anatomy.n_layers)
        if target not in stored:
            raise ExportError(refusal(f"{name}, which {source.name} does not hold", "its matrices", "Use --to merged."))
        t = stored[target]
        there = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
        here = live_edits(loaded.model).pristine(name).cpu()
        arrange = _arrangement(there, here, [n for n in heads if n])
        if arrange is None:
            got = f"{name}, which {source.name} holds in other numbers or in an unknown order"
            raise ExportError(refusal(got, "the file that the base was loaded from", "Use --to merged."))
        out[target] = arrange(change.merged_into(here, torch.float32)).contiguous()
    return out


def architecture(reader: Any) -> str:
    """What the file says its architecture is.

    Args:
        reader: A `GGUFReader`.

    Returns:
        E.g. `llama`; empty where it says nothing.
    """
    import gguf

    field = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    return "" if field is None else str(field.contents())


def _counterpart(reader: Any, name: str, n_layers: int) -> str:
    import gguf

    arch = architecture(reader)
    known = next((key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch), None)
    if known is None:
        raise ExportError(refusal(f"a GGUF file of {arch!r}", "an architecture that gguf knows", "Use --to merged."))
    return str(gguf.get_tensor_name_map(known, n_layers).get_name(name, try_suffixes=(".weight",)))


def _arrangement(there: Tensor, here: Tensor, heads: Sequence[int]) -> Callable[[Tensor], Tensor] | None:
    """How the file arranges a matrix: as transformers does, transposed, or with rows interleaved for rotary heads."""
    ways: list[Callable[[Tensor], Tensor]] = [lambda w: w, lambda w: w.mT]
    ways += [_interleaved(n) for n in heads if here.shape[0] % (2 * n) == 0]
    for way in ways:
        moved = way(here)
        if moved.shape == there.shape and torch.equal(moved, there.to(here.dtype)):
            return way
    return None


def _interleaved(n_heads: int) -> Callable[[Tensor], Tensor]:
    def move(w: Tensor) -> Tensor:
        halves = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, w.shape[1])
        return halves.transpose(1, 2).reshape(w.shape)

    return move


def write_edited(source: Path, target: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Copy a GGUF file with some tensors replaced.

    Args:
        source: The base's file.
        target: The new one.
        weights: Matrices by their names in the file.
        dtype: How to write them.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    kind = gguf.GGMLQuantizationType[_NAMES[dtype][0]]
    new = {name: gguf.quants.quantize(w.float().numpy(), kind) for name, w in weights.items()}
    keys = gguf.Keys.General
    writer = gguf.GGUFWriter(target, architecture(reader), endianess=reader.endianess)
    writer.data_alignment = reader.alignment
    for field in reader.fields.values():
        if field.name == keys.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for t in reader.tensors:
        data, type_ = (new[t.name], kind) if t.name in new else (t.data, t.tensor_type)
        writer.add_tensor_info(t.name, data.shape, data.dtype, data.nbytes, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for t in reader.tensors:
        writer.write_tensor_data(new.get(t.name, t.data), tensor_endianess=reader.endianess)
    writer.close()


def find_converter() -> Path | None:
    """llama.cpp's converter: in the folder `LLAMA_CPP` names, else on the path.

    Returns:
        The script, or None.
    """
    folder = os.environ.get("LLAMA_CPP")
    if folder and (Path(folder) / CONVERTER).is_file():
        return Path(folder) / CONVERTER
    found = shutil.which(CONVERTER)
    return Path(found) if found else None


def _convert(edits: Sequence[Edit], target: Path, loaded: LoadedModel, dtype: torch.dtype) -> None:
    script = find_converter()
    if script is None:
        got = f"the base {loaded.name!r}, which is no GGUF file, without llama.cpp's {CONVERTER}"
        remedy = "Set LLAMA_CPP to a checkout of llama.cpp, pass the base's .gguf file as --base, or use --to merged."
        raise ExportError(refusal(got, "a GGUF base, or that converter", remedy))
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        with live_edits(loaded.model).only():
            save_merged(edits, Path(name), loaded, dtype)
        command = [sys.executable, str(script), name, "--outfile", str(target), "--outtype", _NAMES[dtype][1]]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode or not target.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
        raise ExportError(refusal(f"a failure of {CONVERTER}: {last[0]}", "a model it knows", "Use --to merged."))


def compare(
    edits: Sequence[Edit], again: LoadedModel, loaded: LoadedModel, dtype: torch.dtype, *, copied: bool
) -> None:
    """Refuse a file that does not hold the edited matrices, to the bit.

    Args:
        edits: The edits.
        again: What was read back from the file.
        loaded: The base.
        dtype: How the edited matrices were written.
        copied: All others were copied, so they must be equal too; a converter may round them.

    Raises:
        ExportError: It holds something else.
    """
    live = live_edits(loaded.model)
    changes = summed_changes(edits)
    for name in (n for n, _ in loaded.model.named_parameters()):
        there, here = again.model.get_parameter(name).detach().cpu(), live.pristine(name).cpu()
        if name in changes:
            same = torch.equal(there, changes[name].merged_into(here, torch.float32).to(dtype).to(there.dtype))
        elif copied:
            same = torch.equal(there.to(here.dtype), here)
        else:
            same = torch.allclose(there, here.to(there.dtype), rtol=2**-7, atol=2**-14)
        if not same:
            got = f"a GGUF file whose {name} is not what was written to it"
            raise ExportError(refusal(got, "equal numbers", "Please report this, with the names of model and file."))
