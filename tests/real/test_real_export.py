"""A real edit leaves the house: small on disk, and the same in every form, in a process that has no roseedit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from roseedit.editor import Editor
from roseedit.edits.edit import Edit
from roseedit.edits.export.forms import export_edits
from roseedit.edits.files import load_edit
from roseedit.edits.live import live_edits
from roseedit.editsets import load_editset
from roseedit.models.encoding import pad_right

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
KIBIBYTE = 2**10

STOCK = """
import json, sys
sys.modules["roseedit"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
wanted = load_file(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
with torch.no_grad():
    found = model(input_ids=wanted["ids"], attention_mask=wanted["mask"]).logits
here = wanted["mask"].bool()
print(json.dumps([float((found - wanted[name])[here].abs().max()) for name in ("edited", "plain")]))
"""


@pytest.fixture(scope="module")
def made(shared_editor: Editor) -> tuple[Edit, ...]:
    """Two edits, each alone; not live."""
    requests = load_editset("wikidata-counterfact", ROOT / "data" / "wikidata_sample.json").requests[:2]
    return shared_editor.edit(list(requests), mode="independent", evaluate=False).edits


def fifty(editor: Editor) -> tuple[Tensor, Tensor]:
    """Ids and mask of 50 prompts, the edits' own among them."""
    requests = load_editset("wikidata-counterfact", ROOT / "data" / "wikidata_sample.json").requests
    texts = [r.prompt for r in requests] + [text for r in requests for text in r.rephrase]
    texts += [p.prompt for r in requests for p in (*r.locality, *r.portability)]
    unique = list(dict.fromkeys(texts))[:50]
    assert len(unique) == 50
    return pad_right(
        [editor.loaded.tokenizer(t)["input_ids"] for t in unique], editor.loaded.pad_id, editor.loaded.device
    )


@torch.no_grad()
def test_stock_peft_gives_the_live_models_logits(editor: Editor, made: tuple[Edit, ...], tmp_path: Path) -> None:
    ids, mask = fifty(editor)
    model = editor.loaded.model
    plain = model(input_ids=ids, attention_mask=mask).logits
    with live_edits(model).only([edit.delta for edit in made]):
        edited = model(input_ids=ids, attention_mask=mask).logits
    save_file({"ids": ids, "mask": mask, "plain": plain, "edited": edited}, tmp_path / "wanted.safetensors")
    export_edits(made, "peft", tmp_path / "adapter")
    command = [sys.executable, "-c", STOCK, str(tmp_path / "wanted.safetensors"), str(tmp_path / "adapter")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    to_edited, to_plain = json.loads(ran.stdout.splitlines()[-1])
    scale = float(edited[mask.bool()].abs().max())
    assert to_edited <= 1e-5 * scale, (to_edited, scale)  # logits reach 36, where float32 itself steps by 4e-6
    assert to_plain > 1


def test_an_edit_is_small_on_disk(editor: Editor, made: tuple[Edit, ...], tmp_path: Path) -> None:
    for edit in made:
        editor.apply(edit)
        folder = editor.save(edit.edit_id, tmp_path / edit.edit_id)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 64 * KIBIBYTE
        assert load_edit(folder, editor.loaded).edit_id == edit.edit_id


@pytest.mark.parametrize(("form", "dtype"), [("merged", "bfloat16"), ("gguf", "float16")])
def test_an_edit_survives_the_cast(
    editor: Editor, made: tuple[Edit, ...], tmp_path: Path, form: str, dtype: str
) -> None:
    done = export_edits(made, form, tmp_path / "out", editor.loaded, dtype=dtype)
    assert done.figures["reliability_live"]["mean"] == done.figures["reliability_exported"]["mean"] == 1
    assert done.figures["lost"] == []
