"""The heat map of a state, as a notebook shows it."""

import base64
import io
import re

import numpy as np
import pytest
from helpers.saved import some_state
from PIL import Image

from rwkv_cli.engine import heat_map
from rwkv_cli.engine.state import State


def images(html):
    """The pictures in it, as arrays [height, width, 3]."""
    found = re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_it_has_a_pixel_for_each_head_of_each_layer():
    wkv = np.zeros((3, 2, 4, 4), np.float32)
    wkv[0], wkv[1], wkv[2, 1] = 1e-3, 1, 1e3
    state = State(np.zeros((3, 8), np.float32), wkv, np.zeros((3, 8), np.float32))
    heads, scale = images(state._repr_html_())
    assert heads.shape == (2, 3, 3)
    low, middle, high = scale[0, 0], heat_map.colours(np.array(0.5)), scale[0, -1]
    assert heads.tolist() == [
        [low.tolist(), middle.tolist(), low.tolist()],
        [low.tolist(), middle.tolist(), high.tolist()],
    ]


def test_it_needs_nothing_else_and_is_small():
    state = some_state().snapshot.state
    html = state._repr_html_()
    assert not re.search(r"https?:|<script|url\(", html)
    assert html.count("<div") == html.count("</div>")
    large = np.abs(np.random.default_rng(1).normal(size=(61, 64)))
    assert len(heat_map.html(large, "State")) < 40_000
    assert "2 layers from left to right, 2 heads from top to bottom" in html


@pytest.mark.parametrize("value", [0, np.nan, np.inf, 3e38])
def test_any_values_can_be_shown(value):
    values = np.full((2, 2, 4, 4), value, np.float32)
    state = State(np.zeros((2, 8), np.float32), values, np.zeros((2, 8), np.float32))
    with np.errstate(all="raise"):
        assert images(state._repr_html_())[0].shape == (2, 2, 3)
