"""What `rwkv quantize --budget` shows: a table of mixes that were measured, and a picture of size against loss."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import typer

from rwkv_cli.cli.terminal import ui
from rwkv_cli.convert.budget import Outcome, Point
from rwkv_cli.files.atomic import replacing
from rwkv_cli.reporting import format_size

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 80, 40, 60
"""Around the plot, in pixels."""

_INK, _GRID, _LINE, _MARK = (40, 40, 40), (220, 220, 220), (60, 110, 180), (210, 70, 50)


def facts(outcome: Outcome) -> dict[str, object]:
    """All that was measured."""
    return {
        "chosen": _point_facts(outcome.chosen),
        "points": [_point_facts(point) for point in outcome.points],
        "sensitivity": [
            {"names": list(each.names), "weights": each.weights, "kl_divergence": each.divergence}
            for each in outcome.sensitivities
        ],
        "text": "its own" if outcome.is_own_text else "given",
    }


def _point_facts(point: Point) -> dict[str, object]:
    return {
        "bits": point.bits,
        "int4_matrices": point.narrow,
        "bytes": point.bytes,
        "kl_divergence": point.divergence,
        "perplexity": point.perplexity,
    }


def show(outcome: Outcome) -> None:
    """Print the mixes that were measured, and mark the chosen one."""
    rows = [
        (
            f"{point.bits:.2f}",
            format_size(point.bytes),
            str(point.narrow),
            f"{point.divergence:.5f}",
            f"{point.perplexity:.3f}",
            "chosen" if point.is_chosen else "",
        )
        for point in outcome.points
    ]
    titles = "bits", "size", "int4 matrices", "KL from int8", "perplexity", ""
    ui.columns(titles, rows, right={0, 1, 2, 3, 4})
    worst = outcome.sensitivities[-1]
    typer.echo(f"most sensitive for its size: {worst.names[0]}")
    if outcome.is_own_text:
        typer.echo("measured on a text that the model itself wrote; --calibrate takes one of yours")


def write_picture(outcome: Outcome, path: Path) -> None:
    """Write size against KL divergence as a PNG. Raises StorageError."""
    data = _png(outcome.points)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _png(points: Sequence[Point]) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    sizes = [point.bytes / 1e6 for point in points]
    low, high = min(sizes), max(sizes)
    most = max(point.divergence for point in points) or 1.0

    def at(size: float, divergence: float) -> tuple[float, float]:
        x = LEFT + (size - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - divergence / most * (HEIGHT - TOP - BOTTOM)

    for i in range(5):
        size, divergence = low + (high - low) * i / 4, most * i / 4
        draw.line([at(size, 0), at(size, most)], _GRID)
        draw.line([at(low, divergence), at(high, divergence)], _GRID)
        draw.text((at(size, 0)[0], HEIGHT - BOTTOM + 8), f"{size:.4g}", _INK, anchor="ma")
        draw.text((LEFT - 8, at(low, divergence)[1]), f"{divergence:.2g}", _INK, anchor="rm")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 24), "size of the weights, MB", _INK, anchor="ma")
    draw.text((LEFT, 8), "KL divergence from int8, nats", _INK)
    where = [at(size, point.divergence) for size, point in zip(sizes, points, strict=True)]
    draw.line(where, _LINE, 2)
    for (x, y), point in zip(where, points, strict=True):
        radius, colour = (6, _MARK) if point.is_chosen else (3, _LINE)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        if point.is_chosen or point in (points[0], points[-1]):  # of all, they would overlap
            draw.text((x + 8, y - 14), f"{point.bits:.2f} bits", _INK)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
