"""A heat map of a state: the norm of the memory of each head of each layer, as colours, and as HTML for notebooks.

Layers run from left to right and heads from top to bottom. The colour shows the logarithm of the norm, since norms
differ by orders of magnitude.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Five points of matplotlib's viridis: from dark to light, so that colour-blind eyes see the same order.
_COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)

_CELL = 12  # pixels of a head of a layer, in a notebook
_SCALE = 64  # steps of the colour scale below it


def norms(wkv: NDArray[Any]) -> Array:
    """The Frobenius norm of each head's memory [L, H, N, N]: float64 [L, H]."""
    found: Array = np.sqrt(np.square(wkv.astype(np.float64)).sum((2, 3)))
    return found


def extremes(values: Array) -> tuple[float, float]:
    """The smallest norm that is not zero, and the largest."""
    positive = values[values > 0]
    return (float(positive.min()), float(positive.max())) if positive.size else (0.0, 0.0)


def levels(values: Array) -> Array:
    """Norms on a scale from 0, the smallest, to 1, the largest; empty heads are 0."""
    low, high = extremes(values)
    if low == high:
        return np.where(values > 0, 1.0, 0.0)
    with np.errstate(divide="ignore"):
        scaled: Array = (np.log(values) - np.log(low)) / (np.log(high) - np.log(low))
    return scaled.clip(0, 1)


def colours(scale: Array) -> NDArray[np.uint8]:
    """Red, green and blue of levels of any shape: uint8 [..., 3]."""
    at = np.nan_to_num(scale) * (len(_COLOURS) - 1)
    low = np.minimum(at.astype(int), len(_COLOURS) - 2)
    mixed = _COLOURS[low] + (at - low)[..., None] * (_COLOURS[low + 1] - _COLOURS[low])
    rounded: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return rounded


def html(values: Array, title: str) -> str:
    """Norms [L, H] as a figure that needs nothing else: two small images, and a line that explains them."""
    L, H = values.shape
    low, high = extremes(values)
    about = f"{title}; {L} layers from left to right, {H} heads from top to bottom; norms"
    heads = _image(colours(levels(values)).swapaxes(0, 1), L * _CELL, H * _CELL, "norms of the heads")
    scale = _image(colours(np.linspace(0, 1, _SCALE)[None]), 2 * _SCALE, _CELL, "from low to high")
    return (
        f'<div style="font-family:sans-serif;font-size:12px">{heads}<div>{about} '
        f"{low:.3g} {scale} {high:.3g}, logarithmic</div></div>"
    )


def _image(pixels: NDArray[np.uint8], width: int, height: int, what: str) -> str:
    """Pixels [height, width, 3] as an `img` of another size, with sharp edges."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    style = "image-rendering:pixelated;vertical-align:middle;max-width:none"
    return (
        f'<img alt="{what}" width="{width}" height="{height}" style="{style}" '
        f'src="data:image/png;base64,{data}">'
    )
