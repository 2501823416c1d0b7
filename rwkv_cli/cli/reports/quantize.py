"""What `rwkv quantize` tells: sizes and speeds to expect, and what a conversion has cost."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path
from typing import Any

import typer

from rwkv_cli.cli.terminal import ui
from rwkv_cli.convert import conversion, quantization_loss
from rwkv_cli.convert.conversion import Source
from rwkv_cli.convert.quantization_loss import Comparison
from rwkv_cli.errors import DeviceError, UsageError
from rwkv_cli.reporting import Reporter, format_size

SHOWN = 10  # of the worst tensors
_MAX_TEXT = 1 << 24


def text_of(compare: str) -> str:
    """The text of --compare, or that of the file which it names. Raises UsageError."""
    path = Path(compare).expanduser()
    try:
        if not path.is_file():
            return compare
        if path.stat().st_size > _MAX_TEXT:
            raise UsageError(f"{path} is too large to compare with: some thousand words will do")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text") from None
    except ValueError:  # a text that can be no path
        return compare
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return compare
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def tokens_of(source: Source, text: str) -> list[int]:
    """The tokens to compare with. Raises UsageError."""
    return quantization_loss.tokens_of(source, text)


def measure(source: Source, target: Path, tokens: list[int], reporter: Reporter) -> Comparison:
    """The cost of a conversion."""
    return quantization_loss.compare(source, target, tokens, reporter)


def show_plan(source: Source, reporter: Reporter, json: bool) -> None:
    """The sizes that model files of each type would have, and how fast they could run here."""
    speed = _memory_speed(reporter)
    rows = conversion.plan(source, speed)
    if json:
        _write(
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
        ui.note(f"each token reads all weights once, and this memory gives {speed / 1e9:.1f} GB/s")


def _memory_speed(reporter: Reporter) -> float | None:
    """Bytes that the memory of the fastest device of this machine gives in a second; None where no backend can run."""
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


def write_json(source: Source, target: Path, weight_type: str, found: Comparison | None) -> None:
    """The result as one JSON object."""
    facts: dict[str, Any] = {
        "path": str(target),
        "weight_type": weight_type,
        "source": str(source.path),
        "source_type": source.dtype,
        "source_bytes": source.bytes,
        "file_bytes": target.stat().st_size,
        "lora": source.adapter,
    }
    if found:
        tensors = [
            {"name": each.name, "type": each.weight_type, "relative_error": each.relative}
            for each in found.tensors
        ]
        perplexity = {"before": found.before, "after": found.after, "tokens": found.tokens}
        facts |= {"perplexity": perplexity, "tensors": tensors}
    _write(facts)


def tell(source: Source, target: Path, weight_type: str, found: Comparison | None) -> None:
    """The result for people."""
    before, after = format_size(source.bytes), format_size(target.stat().st_size)
    typer.echo(f"{before} -> {after}, {weight_type}; {ui.printable(str(target))}")
    if found is None:
        return
    change = found.after / found.before - 1
    typer.echo(
        f"perplexity {found.before:.3f} -> {found.after:.3f} ({change:+.1%}), {found.tokens:,} predictions\n"
    )
    rows = [(each.name, each.weight_type, f"{each.relative:.3%}") for each in found.tensors[:SHOWN]]
    ui.columns((f"worst of {len(found.tensors)} tensors", "type", "relative error"), rows)


def _write(value: Any) -> None:
    from json import dumps

    sys.stdout.write(dumps(value, ensure_ascii=False, indent=2) + "\n")
