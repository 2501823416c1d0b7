"""The forward pass of some tokens, of one text or of many: a sequence of phases of independent items of work.

See `cpu_kernels.layers` for the items and for the names `run`, `matrices` and `inputs`, `cpu_kernels.work_queue` and
`cpu_kernels.runtime.thread_team` for how threads share them.
"""

from __future__ import annotations

from collections.abc import Sequence

from numba import njit

from cpu_kernels import layers
from cpu_kernels.abi import (
    ACTIVATION,
    BLOCK,
    FFN_KEY,
    FFN_VALUE,
    GATED,
    HEAD_SIZE,
    HIDDEN,
    IN_FFN,
    IN_HEAD,
    MATRIX,
    N_MATRICES,
    N_VECTORS,
    OUTPUT,
    RUN,
)
from cpu_kernels.layers import at, n_low_rank_items, output_rows
from cpu_kernels.records import table
from cpu_kernels.work_queue import SHARES, team_loop

# The kinds of phases: one at the beginning of a pass, seven per layer, two at the end.
EMBED, MIX_TIME, PROJECT, HEADS, ADD_OUTPUT, MIX_CHANNELS, HIDDEN_UNITS, ADD_HIDDEN, HEAD_INPUT, HEAD = range(
    10
)
LAYER_PHASES = 7
OTHER_PHASES = 3

_runs_at, _matrices_at, _inputs_at = table(RUN), table(MATRIX), table(ACTIVATION)


@njit
def kind_of_phase(run: RUN, phase):
    """The kind of a phase, one of the ten."""
    if phase == 0:
        return EMBED
    if phase <= run.L * LAYER_PHASES:
        return MIX_TIME + (phase - 1) % LAYER_PHASES
    return HEAD_INPUT + (phase - 1 - run.L * LAYER_PHASES)


@njit
def n_items(phase, run: RUN, matrices: Sequence[MATRIX], _inputs: Sequence[ACTIVATION]):
    """How many items of work a phase has."""
    kind, C, F = kind_of_phase(run, phase), run.C, run.F
    if kind in (EMBED, MIX_TIME, MIX_CHANNELS):
        return run.T
    if kind == PROJECT:
        return n_low_rank_items(run, matrices, layer_of(phase) * N_MATRICES) + 3 * (C // BLOCK)
    if kind == ADD_OUTPUT:
        return C // output_rows(run)
    if kind == HEADS:
        return C // HEAD_SIZE
    if kind == ADD_HIDDEN:
        return C // BLOCK
    if kind == HIDDEN_UNITS:
        return F // BLOCK
    if kind == HEAD_INPUT:
        return run.n_wanted
    return (matrices[run.L * N_MATRICES].rows + BLOCK - 1) // BLOCK


@njit
def layer_of(phase):
    """The layer that a phase between the first and the last two belongs to."""
    return (phase - 1) // LAYER_PHASES


@njit
def do_item(phase, item, thread, run: RUN, matrices: Sequence[MATRIX], inputs: Sequence[ACTIVATION]):
    """Do one item of work of a phase."""
    kind, C = kind_of_phase(run, phase), run.C
    if kind == EMBED:
        layers.embed(run, item)
    elif kind == HEAD_INPUT:
        layers.head_input(run, inputs[IN_HEAD], item)
    elif kind == HEAD:
        layers.head(run, matrices[run.L * N_MATRICES], inputs[IN_HEAD], item)
    else:
        layer = layer_of(phase)
        matrix, vectors = layer * N_MATRICES, at(run.vectors, layer * N_VECTORS, C)
        if kind == MIX_TIME:
            layers.mix_time(run, inputs, vectors, layer, item)
        elif kind == PROJECT:
            layers.project(run, matrices, inputs, matrix, item)
        elif kind == HEADS:
            layers.heads(run, matrices, inputs, matrix, vectors, layer, item, thread)
        elif kind == ADD_OUTPUT:
            layers.add_output(run, matrices[matrix + OUTPUT], inputs[GATED], item)
        elif kind == MIX_CHANNELS:
            layers.mix_channels(run, inputs[IN_FFN], vectors, layer, item)
        elif kind == HIDDEN_UNITS:
            m, act = matrices[matrix + FFN_KEY], inputs[IN_FFN]
            layers.hidden_units(run, m, act, inputs[HIDDEN], item, thread)
        else:
            layers.add_hidden(run, matrices[matrix + FFN_VALUE], inputs[HIDDEN], layer, item)


_loop = team_loop(n_items, do_item)


def passes(runs, matrices, inputs, team, job, thread):
    """The forward pass that a record RUN describes; a kernel for `cpu_kernels.runtime.thread_team.Team.run`.

    It reads the tokens of the record and leaves the logits and the new states. All arguments but the last two are
    addresses: runs: RUN [1]; matrices: MATRIX [L * N_MATRICES + 1], the head last; inputs: ACTIVATION [N_INPUTS]. An
    entry point, see `cpu_kernels.runtime.aot`.
    """
    run = _runs_at(runs)[0]
    n_phases = run.L * LAYER_PHASES + (
        OTHER_PHASES if run.n_wanted else 1
    )  # a phase without items would never end
    n_parts = SHARES * run.threads
    _loop(n_phases, n_parts, team, job, thread, run, _matrices_at(matrices), _inputs_at(inputs))
