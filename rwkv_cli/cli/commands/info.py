"""`rwkv info`: the machine, the backend and a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rwkv_cli.cli import completion, options
from rwkv_cli.cli.terminal import ui


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            envvar="RWKV_MODEL",
            help="A model file, a published checkpoint or a name.",
            show_default="the one that comes with rwkv",
            autocompletion=completion.models,
        ),
    ] = None,
    device: options.Device = "auto",
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Describe this machine, the backend and a model."""
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.reports.info import backend_facts, machine_facts, model_facts
    from rwkv_cli.engine.backends import registry as backends

    backends.check(device)
    path = registry.locate(model)
    facts = {
        "machine": machine_facts(),
        "backend": backend_facts(device, path),
        "model": model_facts(path),
    }
    if json:
        from json import dumps

        typer.echo(dumps(facts, ensure_ascii=False, indent=2))
        return
    for title, section in facts.items():
        shown = {_label(name): _text(name, value) for name, value in section.items()}
        ui.table(title, {name: text for name, text in shown.items() if text})


def _label(name: str) -> str:
    return (
        name.removesuffix("_bytes")
        .replace("_", " ")
        .replace("cpu", "CPU")
        .replace("gpu", "GPU")
        .replace("cuda", "CUDA")
    )


def _text(name: str, value: Any) -> str:
    """A fact for people; nothing for what is not known."""
    from rwkv_cli.reporting import format_size

    if value is None:
        return "none" if name == "tokenizer" else ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "none found"
    if isinstance(value, bool):
        return "yes" if value else "not yet"
    if isinstance(value, int):
        return format_size(value) if name.endswith("_bytes") else f"{value:,}"
    return str(value)
