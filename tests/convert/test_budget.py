"""Budgets of bits: the budget is kept, the choice is the best one, and the file is what was measured."""

import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
from helpers.models import SHAPES, fine_weights, some_tokens, write_file
from hypothesis import given
from hypothesis import strategies as st

from rwkv_cli.convert import budget, own_text
from rwkv_cli.convert.budget import NARROW, WIDE, Sensitivity, chosen_within
from rwkv_cli.convert.conversion import open_source
from rwkv_cli.engine.backends.cpu import CpuBackend
from rwkv_cli.engine.perplexity import negative_log_likelihoods
from rwkv_cli.errors import UsageError
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import can_be_narrow
from rwkv_cli.reporting import Reporter

CONFIG = SHAPES["four-layers"]


def average_bits(chosen, found):
    share = sum(each.weights for each in chosen) / sum(each.weights for each in found)
    return WIDE - (WIDE - NARROW) * share


@given(
    items=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100)), min_size=1, max_size=7),
    bits=st.floats(4.5, 8),
)
def test_the_choice_is_the_best_of_all(items, bits):
    found = [Sensitivity((str(i),), 4096 * size, loss / 100) for i, (size, loss) in enumerate(items)]
    chosen = chosen_within(found, bits)
    assert average_bits(chosen, found) <= bits + 1e-9
    best = min(
        math.fsum(each.divergence for each in some)
        for n in range(len(found) + 1)
        for some in itertools.combinations(found, n)
        if average_bits(some, found) <= bits + 1e-9
    )
    assert math.fsum(each.divergence for each in chosen) == pytest.approx(best)


@pytest.mark.parametrize("bits", [4, 8.5, math.nan])
def test_budgets_that_cannot_be(bits):
    with pytest.raises(UsageError, match=r"from 4\.5 to 8"):
        budget.check(bits)


def write_within(folder, bits, tokens):
    source = open_source(write_file(folder / "source", fine_weights(CONFIG), "fp32"))
    target = folder / "mixed.safetensors"
    outcome = budget.write_within(source, target, bits, tokens, Reporter(), lambda *_: nullcontext())
    return outcome, ModelFile(target)


def test_the_file_is_what_was_measured(tmp_path):
    tokens = some_tokens(CONFIG, budget.LENGTH + 1)
    outcome, model = write_within(tmp_path, 6, tokens)
    shapes = CONFIG.tensor_shapes()
    every = [name for name in shapes if can_be_narrow(name)]
    weights = {name: int(np.prod(shapes[name])) for name in every}
    share = sum(weights[name] for name in model.info.narrow) / sum(weights.values())
    assert outcome.chosen.bits == pytest.approx(WIDE - (WIDE - NARROW) * share)
    assert 5 < outcome.chosen.bits <= 6
    assert outcome.chosen.bytes == model.weight_bytes
    assert outcome.chosen.narrow == len(model.info.narrow)
    losses = negative_log_likelihoods(CpuBackend(model), tokens)
    assert outcome.chosen.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    assert [
        path.name for path in tmp_path.iterdir() if path.name not in ("source", "mixed.safetensors")
    ] == []
    # Every matrix was measured, and the ends of the curve are the two types.
    assert {name for each in outcome.sensitivities for name in each.names} == {*every}
    first, *_, last = outcome.points
    assert (first.bits, first.divergence, last.bits) == (WIDE, 0, NARROW)
    assert last.divergence > outcome.chosen.divergence > 0


def test_a_text_of_its_own_is_always_the_same(tmp_path):
    outcome, model = write_within(tmp_path, 5, None)
    assert outcome.is_own_text
    first, second = (own_text.pieces(CpuBackend(model), 5, 20) for _ in range(2))
    assert first == second
    assert [len(text) for text in first] == [20] * 5
    assert len({text[0] for text in first}) > 1


def test_few_measurements_of_many_layers(monkeypatch):
    monkeypatch.setattr(budget, "MOST_GROUPS", 13)
    groups = budget._groups(CONFIG)
    assert sorted(itertools.chain(*groups)) == sorted(filter(can_be_narrow, CONFIG.tensor_shapes()))
    assert len(groups) == 13
    assert ("blocks.0.att.key.weight", "blocks.1.att.key.weight") in groups
