"""A heat map of a state for a terminal, or as a PNG; what it shows is computed by `engine.heat_map`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.cli.terminal import ui
from rwkv_cli.engine.heat_map import colours, extremes, levels
from rwkv_cli.errors import UsageError
from rwkv_cli.files.atomic import storage_error

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from rich.console import Console
    from rich.text import Text

Array = NDArray[np.float64]

PNG = b"\x89PNG\r\n\x1a\n"

_SHADES = " ░▒▓█"


def print_map(values: Array, console: Console | None = None) -> None:
    """Print norms [L, H] with a scale: in colours if the terminal has them, otherwise in shades."""
    console = console or ui.console("stdout")
    from rich.text import Text

    L, H = values.shape
    label = len(str(H)) + 1
    width = max(console.width - label - 1, 8)
    times = min(width // L, 2) or 1  # columns per layer
    columns = np.repeat(_narrowed(levels(values), width), times, axis=0)
    in_colour = console.color_system is not None and not console.no_color
    step = 2 if in_colour else 1  # heads per line
    for line, row in enumerate(_coloured(columns) if in_colour else _shaded(columns)):
        console.print(Text(f"{line * step:>{label - 1}} ") + row)
    low, high = extremes(values)
    console.print(
        f"{' ' * label}{L} layers from left to right, {H} heads; norms from {low:.3g} to {high:.3g}"
    )


def write_png(path: Path, values: Array, title: str) -> None:
    """Draw norms [L, H] into a PNG. Raises UsageError for a file of another kind, StorageError if writing fails."""
    if path.exists() and not _is_png(path):
        raise UsageError(f"{path} is not a PNG, so it is not replaced")
    data = _drawn(values, title)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise storage_error(path, error, len(data)) from None


def _is_png(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(PNG)) == PNG
    except OSError:
        return False


def _narrowed(columns: Array, width: int) -> Array:
    """At most `width` layers: neighbours are averaged if there are more."""
    if len(columns) <= width:
        return columns
    return np.stack([part.mean(0) for part in np.array_split(columns, width)])


def _coloured(columns: Array) -> list[Text]:
    """Two heads per line: the upper half of each block is one, the lower half the next."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    rows, rgb = [], colours(columns).tolist()
    for head in range(0, columns.shape[1], 2):
        row = Text()
        for layer in rgb:
            upper = Color.from_rgb(*layer[head])
            lower = Color.from_rgb(*layer[head + 1]) if head + 1 < len(layer) else None
            row.append("▀", Style(color=upper, bgcolor=lower))
        rows.append(row)
    return rows


def _shaded(columns: Array) -> list[Text]:
    from rich.text import Text

    indices = np.rint(columns * (len(_SHADES) - 1)).astype(int)
    return [Text("".join(_SHADES[index] for index in indices[:, head])) for head in range(columns.shape[1])]


# ------------------------------------------------------------------------------------------------------------
# PNG
# ------------------------------------------------------------------------------------------------------------

_CELL, _MARGIN, _LEFT, _TOP, _BOTTOM = 14, 16, 48, 36, 56
_BAR = 160  # the colour scale, in pixels
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def _drawn(values: Array, title: str) -> bytes:
    from PIL import Image, ImageDraw

    L, H = values.shape
    width = max(_LEFT + L * _CELL + _MARGIN, _LEFT + _BAR + 120)
    image = Image.new("RGB", (width, _TOP + H * _CELL + _BOTTOM), _PAPER)
    draw = ImageDraw.Draw(image)
    in_any_font = title.encode("latin-1", "replace").decode("latin-1")
    draw.text((_MARGIN, 10), in_any_font, fill=_INK)
    for layer, row in enumerate(colours(levels(values)).tolist()):
        for head, colour in enumerate(row):
            x, y = _LEFT + layer * _CELL, _TOP + head * _CELL
            draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), fill=tuple(colour))
    _draw_axes(draw, L, H)
    _draw_scale(draw, extremes(values), _TOP + H * _CELL + 30)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _draw_axes(draw: ImageDraw, L: int, H: int) -> None:
    bottom = _TOP + H * _CELL
    for layer in _ticks(L):
        draw.text((_LEFT + layer * _CELL, bottom + 2), str(layer), fill=_INK)
    for head in _ticks(H):
        draw.text((_LEFT - 22, _TOP + head * _CELL), str(head), fill=_INK)
    draw.text((_MARGIN - 12, _TOP - 14), "head", fill=_INK)
    draw.text((_LEFT - 40, bottom + 2), "layer", fill=_INK)


def _ticks(count: int) -> Sequence[int]:
    return range(0, count, 4 if count > 8 else 1)


def _draw_scale(draw: ImageDraw, span: tuple[float, float], y: int) -> None:
    for x, colour in enumerate(colours(np.linspace(0, 1, _BAR)).tolist()):
        draw.line((_LEFT + x, y, _LEFT + x, y + 8), fill=tuple(colour))
    draw.text((_LEFT, y + 10), f"{span[0]:.3g}", fill=_INK)
    draw.text((_LEFT + _BAR - 24, y + 10), f"{span[1]:.3g}", fill=_INK)
    draw.text((_LEFT + _BAR + 8, y - 2), "norm, logarithmic", fill=_INK)
