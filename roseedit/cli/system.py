"""`roseedit models` and `roseedit doctor`: what is there to work with."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from roseedit import __version__
from roseedit.cli.console import out


def models() -> None:
    """List what `--model` takes: embedded models, and the models that hparams files ship for."""
    from roseedit.shipped import shipped_dir

    table = Table("alias", "state", "what it is", title="Embedded models", title_justify="left")
    for alias, found, install, note in _embedded():
        table.add_row(alias, "[green]installed[/]" if found else install, note)
    out.print(table)
    root = shipped_dir("hparams")
    files = sorted(root.glob("*/*.yaml")) if root else []
    table = Table("file", "model", title="Hyper-parameter files", title_justify="left")
    for path in files:
        from roseedit.hparams import read_yaml

        table.add_row(f"hparams/{path.parent.name}/{path.name}", str(read_yaml(path).get("model", "")))
    out.print(table)
    out.print("Any other causal LM works too: a hub id, a local folder or a .gguf file.")


def _embedded() -> Iterator[tuple[str, bool, str, str]]:
    """Alias, whether its package is there, how to install it, and what it is; models to edit first."""
    from roseedit.hadskip.encoder.embedded import ALIASES, alias_folder
    from roseedit.models.embedded import EMBEDDED, find_parts

    for alias, model in EMBEDDED.items():
        yield alias, bool(find_parts(model)), model.install, model.note
    for alias, (_, _, install) in ALIASES.items():
        yield alias, alias_folder(alias) is not None, install, "an encoder, for `roseedit skip fit-classifier`"


def doctor() -> None:
    """Show versions, device, memory and whether an embedded model is found."""
    import platform
    from importlib import metadata

    import psutil
    import torch

    from roseedit.models.embedded import cache_dir
    from roseedit.models.load import default_device
    from roseedit.models.lowp import native_bfloat16
    from roseedit.shipped import shipped_dir

    device = default_device()
    table = Table(show_header=False)
    table.add_row("roseedit", __version__)
    table.add_row("python", platform.python_version())
    for name in ("torch", "transformers", "safetensors", "gguf", "datasets", "pandas", "peft"):
        try:
            table.add_row(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            table.add_row(name, "[yellow]not installed[/]")
    table.add_row("device", device)
    table.add_row("threads", str(torch.get_num_threads()))
    table.add_row("native bfloat16", "yes" if native_bfloat16(torch.device(device)) else "no")
    memory = psutil.virtual_memory()
    table.add_row("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    for alias, found, install, _ in _embedded():
        table.add_row(f"model {alias}", "[green]found[/]" if found else f"[yellow]missing[/]: {install}")
    table.add_row("model cache", str(cache_dir()))
    table.add_row("hparams files", str(shipped_dir("hparams") or "[yellow]not found[/]"))
    out.print(table)
