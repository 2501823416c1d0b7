"""What `rwkv quantize` shows: sizes and speeds to expect, and how much accuracy a conversion lost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import typer

from rwkv_cli.cli.reports import quality
from rwkv_cli.cli.terminal import ui
from rwkv_cli.convert import conversion
from rwkv_cli.convert.conversion import Source
from rwkv_cli.convert.quantization_loss import Loss
from rwkv_cli.errors import DeviceError
from rwkv_cli.reporting import Reporter, format_size

SHOWN = 10  # of the worst tensors


def show_plan(source: Source, reporter: Reporter, json: bool) -> None:
    """Print how large a model file of each type would be, and how fast it could run here."""
    speed = _memory_speed(reporter)
    rows = conversion.plan(source, speed)
    if json:
        ui.write_json(
            {
                "path": str(source.path),
                "file_bytes": source.bytes,
                "memory_bytes_per_second": speed,
                "types": rows,
            }
        )
        return
    shown = [
        (
            str(row["type"]),
            format_size(int(row["file_bytes"] or 0)),
            f"{row['tokens_per_second']:.0f}" if speed else "",
        )
        for row in rows
    ]
    print(f"{ui.printable(str(source.path))}: {source.dtype}, {format_size(source.bytes)}")
    ui.columns(("type", "file", "tokens/s at most"), shown)
    if speed:
        ui.note(f"each token reads all weights once, and the memory bandwidth is {speed / 1e9:.1f} GB/s")


def _memory_speed(reporter: Reporter) -> float | None:
    """The memory bandwidth of the fastest device here, in bytes/s; None if no backend can run, or measure it."""
    from rwkv_cli import paths
    from rwkv_cli.engine import bench
    from rwkv_cli.engine.backends import registry
    from rwkv_cli.files.model_file import ModelFile

    try:
        backend = registry.open_backend(
            "auto", ModelFile(paths.EMBEDDED_MODEL), None, reporter.compiling
        ).backend
    except DeviceError:
        return None
    read = backend.memory_reader()
    return bench.memory_speed(read, time.perf_counter) if read else None


def write_json(
    source: Source, target: Path, weight_type: str, loss: Loss | None, more: Mapping[str, object]
) -> None:
    """Print the result as one JSON object, with `more` facts."""
    facts: dict[str, object] = {
        "path": str(target),
        "weight_type": weight_type,
        "source": str(source.path),
        "source_type": source.dtype,
        "source_bytes": source.bytes,
        "file_bytes": target.stat().st_size,
        "lora": source.adapter,
        **more,
    }
    if loss:
        tensors = [
            {"name": each.name, "type": each.weight_type, "relative_error": each.relative}
            for each in loss.tensors
        ]
        facts |= quality.comparison_facts(loss.models) | {"tensors": tensors}
    ui.write_json(facts)


def show(source: Source, target: Path, weight_type: str, loss: Loss | None) -> None:
    """Print the result as text."""
    before, after = format_size(source.bytes), format_size(target.stat().st_size)
    typer.echo(f"{before} -> {after}, {weight_type}; {ui.printable(str(target))}")
    if loss is None:
        return
    quality.show_comparison(loss.models)
    typer.echo()
    rows = [(each.name, each.weight_type, f"{each.relative:.3%}") for each in loss.tensors[:SHOWN]]
    ui.columns((f"worst of {len(loss.tensors)} tensors", "type", "relative error"), rows)
