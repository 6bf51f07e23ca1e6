"""Exports say what the live edited model says: adapters without roseedit, checkpoints and patches to the bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from roseedit.edits.delta import Delta, MatrixDelta, SparseVectors
from roseedit.edits.edit import Edit
from roseedit.edits.export.adapter import lora_tensors, ranks_of
from roseedit.edits.export.common import summed_changes
from roseedit.edits.export.forms import FORMS, export_edits
from roseedit.edits.export.vllm import RANKS, allowed_rank, serve_command
from roseedit.edits.files import save_edit
from roseedit.edits.fingerprint import base_fingerprint
from roseedit.edits.live import live_edits
from roseedit.errors import DeltaError, ExportError, WrongBaseError
from roseedit.models.load import LoadedModel, load_model
from roseedit.requests import EditRequest

Tiny = Callable[..., LoadedModel]
KINDS = ("gpt2", "llama", "gemma3", "opt", "gptneox")
TIED = {"llama": {"tie_word_embeddings": True}}


def sparse(rows: int, n: int, generator: torch.Generator) -> SparseVectors:
    kept = torch.rand(rows, n, generator=generator) < 0.3
    kept[:, 0] = True
    return SparseVectors.of(0.1 * torch.randn(rows, n, generator=generator) * kept)


def random_edit(loaded: LoadedModel, seed: int, roles: tuple[str, ...] = ("mlp.down", "attn.o")) -> Edit:
    """An edit of two layers whose ranks differ from matrix to matrix."""
    generator = torch.Generator().manual_seed(seed)
    matrices = []
    for i, p in enumerate(loaded.anatomy.select(roles, (1, 2))):
        rank = 1 + (seed + i) % 3
        vectors = sparse(rank, p.d_in, generator), sparse(rank, p.d_out, generator)
        matrices.append(MatrixDelta(p.weight_name, p.d_in, p.d_out, p.transposed, *vectors))
    fingerprint = base_fingerprint(loaded, [m.weight_name for m in matrices])
    request = EditRequest(f"The Tower {seed} is in the city of", "Rome", subject=f"Tower {seed}", target_true="Paris")
    return Edit(Delta(tuple(matrices)), (request,), {"seed": seed}, fingerprint, loaded.name, {"steps": seed})


def prompts(loaded: LoadedModel, n: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, len(loaded.tokenizer), (n, 9), generator=generator)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def saved_base(loaded: LoadedModel, folder: Path) -> str:
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


STOCK = """
import json, sys
sys.modules["roseedit"] = None  # an import of it fails from here on
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
out = {}
for case in json.loads(sys.argv[1]):
    wanted = load_file(case["wanted"])
    base = AutoModelForCausalLM.from_pretrained(case["base"], dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, case["adapter"]).eval()
    direct = AutoModelForCausalLM.from_pretrained(case["adapter"], dtype=torch.float32).eval()
    with torch.no_grad():
        found = [m(input_ids=wanted["ids"]).logits for m in (plain, direct)]
        found.append(plain.unload()(input_ids=wanted["ids"]).logits)
    aims = [wanted["edited"], wanted["edited"], wanted["unedited"]]
    out[case["name"]] = [float((a - b).abs().max()) for a, b in zip(found, aims)]
try:
    import roseedit
    sys.exit("roseedit was there")
except ImportError:
    print(json.dumps(out))
"""


def test_stock_peft_computes_what_the_live_model_computes(tiny: Tiny, tmp_path: Path) -> None:
    """All cases in one process without roseedit: GPT-2's Conv1D, tied heads, ranks that differ, 100 edits."""
    cases = []
    for name in (*KINDS, "hundred"):
        kind = "llama" if name == "hundred" else name
        loaded = tiny(kind, **TIED.get(kind, {}))
        edits = [random_edit(loaded, seed) for seed in range(100 if name == "hundred" else 3)]
        base = saved_base(loaded, tmp_path / f"{name}-base")
        done = export_edits(edits, "peft", tmp_path / name, base=base)
        ids = prompts(loaded)
        plain = logits(loaded.model, ids)
        with live_edits(loaded.model).only([edit.delta for edit in edits]):
            edited = logits(loaded.model, ids)
        assert float((edited - plain).abs().max()) > 1e-2  # the edits matter
        save_file({"ids": ids, "edited": edited, "unedited": plain}, tmp_path / f"{name}.safetensors")
        case = {"name": name, "base": base, "adapter": str(tmp_path / name)}
        cases.append({**case, "wanted": str(tmp_path / f"{name}.safetensors")})
        assert done.figures["rank"] == max(sum(e.delta.matrices[i].rank for e in edits) for i in range(4))
    done_process = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(cases)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done_process.returncode == 0, done_process.stderr
    found = json.loads(done_process.stdout.splitlines()[-1])
    assert set(found) == {*KINDS, "hundred"}
    for name, differences in found.items():
        assert max(differences) <= 1e-5, (name, differences)


def test_concatenation_is_exact(tiny: Tiny) -> None:
    loaded = tiny("llama")
    edits = [random_edit(loaded, seed) for seed in range(5)]
    tensors = lora_tensors(edits)
    for name, change in summed_changes(edits).items():
        module = "base_model.model." + name.removesuffix(".weight")
        product = tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()
        dense = torch.zeros(change.shape, dtype=torch.float64)
        dense.view(-1)[change.index] = change.total.double() * 2.0**-40
        assert float((product - dense).abs().max()) < 1e-10
    ranks = ranks_of(tensors)
    assert len(set(ranks.values())) > 1
    padded = lora_tensors(edits, 16)
    assert set(ranks_of(padded).values()) == {16}
    for name, tensor in tensors.items():
        along = 0 if "lora_A" in name else 1
        assert torch.equal(padded[name].narrow(along, 0, tensor.shape[along]), tensor)
        assert not padded[name].narrow(along, tensor.shape[along], 16 - tensor.shape[along]).any()


def test_an_adapter_says_where_it_came_from(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors import safe_open

    loaded = tiny("gpt2")
    edits = [random_edit(loaded, 1), random_edit(loaded, 2)]
    done = export_edits(edits, "peft", tmp_path / "out", base="some/model")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "some/model")
    assert config["lora_alpha"] == config["r"]
    assert config["alpha_pattern"] == config["rank_pattern"] != {}
    assert config["fan_in_fan_out"] is True
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["edits"]) == [edit.edit_id for edit in edits]
    sidecar = json.loads((tmp_path / "out" / "roseedit.json").read_text())
    assert [e["fingerprint"] for e in sidecar["edits"]] == [edit.fingerprint for edit in edits]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: some/model" in card
    assert "library_name: peft" in card
    for text in (
        *(e.edit_id for e in edits),
        "The Tower 1 is in the city of",
        "Rome",
        "Paris",
        "## Undo",
        "## Licence",
    ):
        assert text in card
    assert done.base == "some/model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_merged_checkpoint_holds_the_cast_sum(
    tiny: Tiny, tmp_path: Path, digest: Callable[..., str], kind: str, dtype: str
) -> None:
    loaded = tiny(kind, **TIED.get(kind, {}))
    edits = [random_edit(loaded, seed) for seed in range(3)]
    live_edits(loaded.model).apply(edits[1].delta)  # what is live stays live, and is not merged twice
    before = digest(loaded.model)
    done = export_edits(edits, "merged", tmp_path / "out", loaded, base="some/model", dtype=dtype)
    assert digest(loaded.model) == before
    again = load_model(str(tmp_path / "out"), dtype="auto", device="cpu")
    assert str(again.model.dtype) == f"torch.{dtype}"
    live_edits(loaded.model).revert(edits[1].delta)
    with live_edits(loaded.model).only([edit.delta for edit in edits]):
        wanted = {name: p.detach().to(again.model.dtype).clone() for name, p in loaded.model.named_parameters()}
    assert again.anatomy.tied == loaded.anatomy.tied
    for name, p in again.model.named_parameters():
        assert torch.equal(p, wanted[name]), name
    assert done.figures["reliability_exported"]["n"] == 3
    assert "reliability_exported" in (tmp_path / "out" / "README.md").read_text()


def test_a_merged_value_that_overflows_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama")
    p = loaded.anatomy.select(("mlp.down",), (1,))[0]
    loaded.model.get_parameter(p.weight_name).data[0, 0] = 7e4
    one = SparseVectors.of(torch.eye(1, p.d_in)), SparseVectors.of(torch.eye(1, p.d_out))
    delta = Delta((MatrixDelta(p.weight_name, p.d_in, p.d_out, False, *one),))
    edit = Edit(delta, (EditRequest("a b", "c"),), {}, base_fingerprint(loaded, [p.weight_name]), "llama")
    with pytest.raises(ExportError, match="too large for torch"):
        export_edits([edit], "merged", tmp_path / "out", loaded, dtype="float16")
    assert list(tmp_path.iterdir()) == []  # nothing is left of the failed export


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_procedure_of_the_card_patches_and_reverts(tiny: Tiny, tmp_path: Path, dtype: torch.dtype) -> None:
    """The code is taken out of README.md and run in a process without roseedit, on the file of a checkpoint."""
    loaded = tiny("gpt2")
    loaded.model.to(dtype)
    edits = [random_edit(loaded, seed) for seed in range(3)]
    base = saved_base(loaded, tmp_path / "base")
    done = export_edits(edits, "patch", tmp_path / "out", loaded, base=base)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert code is not None
    script = f"""
import sys
sys.modules["roseedit"] = None
{code[1]}
from safetensors.torch import save_file
weights = load_file(sys.argv[1] + "/model.safetensors")
patch(weights, sys.argv[2] + "/patch.safetensors")
save_file(weights, sys.argv[3] + "/edited.safetensors")
try:
    patch(weights, sys.argv[2] + "/patch.safetensors")
    sys.exit("patched twice")
except ValueError:
    pass
patch(weights, sys.argv[2] + "/patch.safetensors", undo=True)
save_file(weights, sys.argv[3] + "/reverted.safetensors")
"""
    command = [sys.executable, "-c", script, base, str(tmp_path / "out"), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    own = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    with live_edits(loaded.model).only([edit.delta for edit in edits]):
        wanted = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    edited, reverted = (load_file(tmp_path / f"{which}.safetensors") for which in ("edited", "reverted"))
    assert any(not torch.equal(wanted[name], own[name]) for name in own)
    for name in own:
        assert torch.equal(edited[name], wanted[name])
        assert torch.equal(reverted[name], own[name])
    assert done.figures["entries"] > 0


def test_vllm_gets_a_rank_that_it_takes(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama")
    edits = [random_edit(loaded, seed) for seed in range(6)]
    done = export_edits(edits, "vllm", tmp_path / "out", base="some/model", name="fixed")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == done.figures["rank"] == 16
    assert config["rank_pattern"] == {}
    assert set(ranks_of(load_file(tmp_path / "out" / "adapter_model.safetensors")).values()) == {16}
    expected = f"vllm serve some/model --enable-lora --max-lora-rank 16 --lora-modules fixed={tmp_path / 'out'}"
    assert done.command == expected
    assert expected in (tmp_path / "out" / "README.md").read_text()
    assert expected in (tmp_path / "out" / "serve.sh").read_text()


def test_vllm_limits() -> None:
    assert [allowed_rank(r, 1) for r in (1, 2, 8, 9, 300, 320, 321, 512)] == [1, 8, 8, 16, 320, 320, 512, 512]
    assert list(RANKS) == sorted(RANKS)
    with pytest.raises(ExportError, match=r"rank 800.*at most 64 of them"):
        allowed_rank(800, 100)
    assert serve_command("a b", "x", Path("/tmp/it's"), 8).count("'a b'") == 1
    with pytest.raises(ExportError, match="without '='"):
        serve_command("m", "a=b", Path("/tmp"), 8)


def test_vllm_has_no_lora_for_conv1d(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Conv1D"):
        export_edits([random_edit(tiny("gpt2"), 1)], "vllm", tmp_path / "out", base="some/model")


def test_what_does_not_belong_together_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    llama, qwen = tiny("llama"), tiny("qwen2")
    one, other = random_edit(llama, 1), random_edit(qwen, 1)
    with pytest.raises(ExportError, match="different bases"):
        export_edits([one, other], "peft", tmp_path / "out", base="m")
    llama.model.get_parameter(one.delta.matrices[0].weight_name).data[0, 0] += 1
    with pytest.raises(ExportError, match="different bases"):  # the same architecture with other weights
        export_edits([one, random_edit(llama, 2)], "peft", tmp_path / "out", base="m")
    with pytest.raises(ExportError, match="twice"):
        export_edits([one, one], "peft", tmp_path / "out", base="m")
    with pytest.raises(ExportError, match="no edit"):
        export_edits([], "peft", tmp_path / "out", base="m")
    with pytest.raises(ExportError, match="had no name"):
        export_edits([Edit(one.delta, one.requests, {}, one.fingerprint, "model")], "peft", tmp_path / "out")
    for form in ("merged", "patch", "gguf"):
        with pytest.raises(WrongBaseError):
            export_edits([one], form, tmp_path / "out", qwen)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_form_or_option_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    edit = random_edit(tiny("llama"), 1)
    with pytest.raises(ExportError, match="Did you mean 'peft'"):
        export_edits([edit], "pefd", tmp_path / "out")
    with pytest.raises(ExportError, match="dtype with the form 'peft'"):
        export_edits([edit], "peft", tmp_path / "out", dtype="float16")
    with pytest.raises(ExportError, match=r"dtype 'float8'; allowed: float32"):
        export_edits([edit], "merged", tmp_path / "out", tiny("llama"), dtype="float8")
    assert set(FORMS) == {"peft", "merged", "patch", "gguf", "vllm"}


def test_a_folder_in_use_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(DeltaError, match="in use"):
        export_edits([random_edit(tiny("llama"), 1)], "peft", tmp_path, base="m")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_block_with_other_edits_puts_everything_back(tiny: Tiny, digest: Callable[..., str]) -> None:
    loaded = tiny("llama")
    edits = [random_edit(loaded, seed) for seed in range(3)]
    pristine = digest(loaded.model)
    live = live_edits(loaded.model)
    for edit in edits[:2]:
        live.apply(edit.delta)
    before = digest(loaded.model)
    with pytest.raises(KeyError), live_edits(loaded.model).only([edits[1].delta, edits[2].delta]):
        assert live.deltas == (edits[1].delta, edits[2].delta)
        raise KeyError
    assert digest(loaded.model) == before
    with live_edits(loaded.model).only():
        assert digest(loaded.model) == pristine


def test_the_command_line_exports_and_compares(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from roseedit.cli.app import app

    loaded = tiny("llama")
    folders = [str(save_edit(random_edit(loaded, seed), tmp_path / f"edit{seed}")) for seed in (1, 2)]
    out = str(tmp_path / "out")
    app(["edits", "export", *folders, "--to", "peft", "--out", out, "--base", "m", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["form"], told["folder"], len(told["edits"])) == ("peft", out, 2)
    app(["edits", "diff", *folders, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["same_base"] is True
    assert {m["weight"] for m in told["matrices"]} == {
        p.weight_name for p in loaded.anatomy.select(("mlp.down", "attn.o"), (1, 2))
    }
    app(["edits", "diff", *folders], standalone_mode=False)
    assert "mlp.down_proj" in capsys.readouterr().out
    base = saved_base(loaded, tmp_path / "base")
    patch = str(tmp_path / "patch")
    app(
        ["edits", "export", *folders, "--to", "patch", "--out", patch, "--base", base, "--model", base],
        standalone_mode=False,
    )
    assert "patch.safetensors" in capsys.readouterr().out
