"""A real model in 4 bit: edited where it is whole, given back bit for bit, and told from the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from roseedit.editor import Editor
from roseedit.edits.export.forms import export_edits, load_base
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.errors import AnatomyError, ExportError, ModelError, WrongBaseError
from roseedit.hparams import read_yaml
from roseedit.models import quantized
from roseedit.models.embedded import embedded_folder
from roseedit.models.load import load_model

pytestmark = pytest.mark.real
HPARAMS = read_yaml(Path(__file__).resolve().parents[2] / "hparams" / "RoseLoRA" / "smollm2-135m.yaml")
WHOLE = [24, 25, 26, 27]
PROMPT = "The Eiffel Tower is located in the city of"


@pytest.fixture(scope="module")
def packed(shared_editor: Editor) -> Iterator[Editor]:
    pytest.importorskip("bitsandbytes")
    yield Editor.from_hparams({**HPARAMS, "quantize": "nf4"}, show_progress=False)


def test_all_but_the_layers_of_edits_is_packed(packed: Editor, editor: Editor) -> None:
    projections = packed.loaded.anatomy.projections
    assert {p.layer for p in projections if not p.packed} == set(WHOLE)
    full = editor.loaded.anatomy
    assert [(p.module_name, p.d_in, p.d_out) for p in projections] == [
        (p.module_name, p.d_in, p.d_out) for p in full.projections
    ]
    sizes = [e.loaded.model.get_memory_footprint() for e in (packed, editor)]
    assert sizes[0] < 0.45 * sizes[1]
    outline = quantized.outline(str(embedded_folder("smollm2-135m")))
    assert (outline.layers_name, outline.projections) == (full.layers_name, full.projections)


def test_an_edit_and_its_way_back(
    packed: Editor, editor: Editor, digest: Callable[[nn.Module], str], tmp_path: Path
) -> None:
    before, said = digest(packed.loaded.model), packed.generate(PROMPT)
    assert not said.startswith("Rome")
    made = packed.edit(PROMPT, "Rome", subject="Eiffel Tower").edits[0]
    assert packed.generate(PROMPT) == "Rome"
    with pytest.raises(WrongBaseError):
        editor.apply(made)
    with pytest.raises(ExportError, match="4 bit"):
        export_edits([made], "merged", tmp_path / "merged", loaded=packed.loaded)
    assert not (tmp_path / "merged").exists()
    packed.revert(made.edit_id)
    assert (digest(packed.loaded.model), packed.generate(PROMPT)) == (before, said)
    again = load_base(made)
    assert base_fingerprint(again, [m.weight_name for m in made.delta.matrices]) == made.fingerprint


def test_a_packed_layer_is_refused_by_name(packed: Editor) -> None:
    with pytest.raises(AnatomyError, match=r"layers\.20\..*4 bit.*\[24, 25, 26, 27\]"):
        Editor(packed.loaded, packed.hparams.replaced(layers=[20]), show_progress=False)


def test_what_cannot_be_packed_is_said_before_a_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind, match in (("smollm2-135m", "int3", "nf4"), ("model.gguf", "nf4", "GGUF")):
        with pytest.raises(ModelError, match=match):
            load_model(name, quantize=kind)
    with pytest.raises(ModelError, match=r"^got edits that may write to every layer"):
        load_model("smollm2-135m", quantize="nf4", whole=lambda anatomy: range(anatomy.n_layers))
    found = quantized.find_spec
    monkeypatch.setattr(quantized, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ModelError, match=r"^got quantize: nf4 without.*roseedit\[4bit\]"):
        load_model("smollm2-135m", quantize="nf4")
