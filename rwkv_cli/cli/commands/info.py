"""`rwkv info`: the machine, the backend and a model."""

from __future__ import annotations

from rwkv_cli.cli import options
from rwkv_cli.cli.terminal import ui


def info(
    name: options.ModelName = None,
    *,
    model: options.Model = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Describe this machine, the backend and a model.

    Examples:
        # What this machine has, and what would compute
        rwkv info
        # A model: its size, template and sampling defaults
        rwkv info g1-0.1b
        # A file, as JSON
        rwkv info rwkv7-g1-0.1b.pth --json
    """
    from rwkv_cli.catalog import registry
    from rwkv_cli.cli.reports import info

    facts = info.facts(registry.locate(options.model_of(name, model)), device)
    if json:
        ui.write_json(facts)
    else:
        info.show(facts)
