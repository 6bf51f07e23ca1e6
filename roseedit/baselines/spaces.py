"""What `roseedit tune` tries for each baseline."""

from __future__ import annotations

from roseedit.methods.space import Knob, layer_knobs

MODULES = Knob("modules", choices=("attn.q+attn.v", "attn.qkv", "mlp.down", "attn.o", "attn.o+mlp.down"))
WORDING = Knob(
    "template",
    choices=(
        "New Fact: {prompt} {target}\nPrompt: ",
        "{prompt} {target}\n",
        "{prompt} {target}. ",
        "Fact: {prompt} {target}.\n\n",
        "Imagine that this is true: {prompt} {target}. Then: ",
    ),
)
_END = Knob("end_mark", choices=(True, False))
_STOP = Knob("stop_loss", 1e-3, 1.0, log=True)

FINE_TUNING = (
    *layer_knobs(),
    Knob("lr", 1e-4, 1e-2, log=True),
    Knob("steps", 5, 60, whole=True),
    _STOP,
    Knob("weight_decay", 1e-4, 1.0, log=True),
    Knob("norm_constraint", choices=("none", "entry")),
    Knob("norm_limit", 1e-4, 1e-2, log=True),
    _END,
)
LORA = (
    *layer_knobs(widest=1.0),
    MODULES,
    Knob("rank", 1, 16, log=True, whole=True),
    Knob("lr", 2e-4, 2e-2, log=True),
    Knob("steps", 10, 80, whole=True),
    _STOP,
    Knob("weight_decay", 1e-4, 1.0, log=True),
    _END,
)
ADALORA = (
    *layer_knobs(widest=1.0),
    MODULES,
    Knob("rank", 1, 7, whole=True),
    Knob("lr", 5e-4, 2e-2, log=True),
    Knob("allocate_end", 10, 40, whole=True),
    Knob("orthogonality", 1e-2, 1.0, log=True),
    _STOP,
    _END,
)
IN_CONTEXT = (WORDING,)
