"""What people write without a toolkit, one fact at a time: the yardsticks of engine_speed.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from roseedit import EditRequest
from roseedit.models.encoding import encode_pair
from roseedit.models.load import LoadedModel


def lora_loop(loaded: LoadedModel, requests: Sequence[EditRequest], steps: int) -> None:
    """A fresh PEFT LoRA per fact: rank 8 on q and v, Adam 5e-3 on prompt + target."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    for request in requests:
        model = get_peft_model(loaded.model, config)
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=5e-3)
        _train(model, optimizer, _batch(loaded, request), steps, stop=0.0)
        loaded.model = model.unload()
    _thawed(loaded)


def ft_m_loop(loaded: LoadedModel, requests: Sequence[EditRequest], steps: int = 25, stop: float = 0.01) -> None:
    """Adam 5e-4 on the `mlp.down` of one layer, at two thirds of the depth, until the loss is small."""
    layer = round(0.69 * (loaded.anatomy.n_layers - 1))
    (chosen,) = (p for p in loaded.anatomy.projections if p.layer == layer and p.role == "mlp.down")
    loaded.model.requires_grad_(False)
    weight = loaded.model.get_parameter(chosen.weight_name).requires_grad_(True)
    own = weight.detach().clone()
    for request in requests:
        _train(loaded.model, torch.optim.Adam([weight], lr=5e-4), _batch(loaded, request), steps, stop)
        with torch.no_grad():
            weight.copy_(own)
    _thawed(loaded)


def _batch(loaded: LoadedModel, request: EditRequest) -> tuple[Tensor, Tensor]:
    encoded = encode_pair(loaded.tokenizer, request.prompt, request.target_new, end_mark=True)
    ids = torch.tensor([encoded.ids], device=loaded.device)
    labels = ids.clone()
    labels[:, : encoded.start] = -100
    return ids, labels


def _train(model: Any, optimizer: Any, batch: tuple[Tensor, Tensor], steps: int, stop: float) -> None:
    ids, labels = batch
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).loss
        if stop and float(loss) < stop:
            return
        loss.backward()
        optimizer.step()


def _thawed(loaded: LoadedModel) -> None:
    loaded.model.requires_grad_(True)
    loaded.model.eval()
