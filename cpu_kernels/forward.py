"""The forward pass of a chunk of tokens: phases, each a list of independent items, that a team of threads goes through.

See `cpu_kernels.layers` for the items, `cpu_kernels.work_queue` and `cpu_kernels.thread_team` for the threads.
"""

from numba import njit

from cpu_kernels import layers
from cpu_kernels.abi import (
    ACTIVATION,
    BLOCK,
    FFN_KEY,
    FFN_VALUE,
    GATED,
    HIDDEN,
    IN_FFN,
    IN_HEAD,
    MATRIX,
    N_MATRICES,
    N_VECTORS,
    OUTPUT,
    RUN,
)
from cpu_kernels.layers import at, n_low_rank_tiles, n_wanted, output_rows
from cpu_kernels.simd import table
from cpu_kernels.work_queue import (
    begin_pass,
    end_items,
    end_pass,
    is_time_to_leave,
    item_of,
    look,
    phase_of,
    share,
    take,
)

# The phases of a pass: one to begin with, seven a layer, two to end with.
EMBED, MIX_TIME, PROJECT, HEADS, ADD_OUTPUT, MIX_CHANNELS, HIDDEN_UNITS, ADD_HIDDEN, HEAD_INPUT, HEAD = range(
    10
)
LAYER_PHASES = 7

_runs_at, _matrices_at, _inputs_at = table(RUN), table(MATRIX), table(ACTIVATION)


@njit
def kind_of_phase(run, phase):
    """Which of the ten kinds a phase of the pass is."""
    if phase == 0:
        return EMBED
    if phase <= run.L * LAYER_PHASES:
        return MIX_TIME + (phase - 1) % LAYER_PHASES
    return HEAD_INPUT + (phase - 1 - run.L * LAYER_PHASES)


@njit
def n_items(run, matrices, phase):
    """How many items of work a phase has."""
    kind, blocks = kind_of_phase(run, phase), run.C // BLOCK
    if kind in (EMBED, MIX_TIME, MIX_CHANNELS):
        return run.T
    if kind == PROJECT:
        return n_low_rank_tiles(matrices, layer_of(phase) * N_MATRICES) + 3 * blocks
    if kind == ADD_OUTPUT:
        return run.C // output_rows(run)
    if kind in (HEADS, ADD_HIDDEN):
        return blocks
    if kind == HIDDEN_UNITS:
        return run.F // BLOCK
    if kind == HEAD_INPUT:
        return n_wanted(run)
    return (matrices[run.L * N_MATRICES].rows + BLOCK - 1) // BLOCK


@njit
def layer_of(phase):
    """The layer that a phase between the first and the last two belongs to."""
    return (phase - 1) // LAYER_PHASES


@njit
def do_item(run, matrices, inputs, phase, item, thread):
    """One item of work of a phase."""
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
        shift_att, shift_ffn = at(run.shift_att, layer, C), at(run.shift_ffn, layer, C)
        if kind == MIX_TIME:
            layers.mix_time(run, inputs, vectors, shift_att, item)
        elif kind == PROJECT:
            layers.project(run, matrices, inputs, matrix, shift_att, item)
        elif kind == HEADS:
            layers.heads(run, matrices, inputs, matrix, vectors, layer, item)
        elif kind == ADD_OUTPUT:
            layers.add_output(run, matrices[matrix + OUTPUT], inputs[GATED], item)
        elif kind == MIX_CHANNELS:
            layers.mix_channels(run, inputs[IN_FFN], vectors, shift_ffn, item)
        elif kind == HIDDEN_UNITS:
            layers.hidden_units(
                run, matrices[matrix + FFN_KEY], inputs[IN_FFN], inputs[HIDDEN], shift_ffn, item, thread
            )
        else:
            layers.add_hidden(run, matrices[matrix + FFN_VALUE], inputs[HIDDEN], item, thread)


def passes(runs, matrices, inputs, team, job, thread):
    """Forward passes of a record RUN, as `cpu_kernels.thread_team.Team.run` wants them; an entry point, see
    `cpu_kernels.aot`.

    Each reads the tokens of the record and leaves the logits and the new state. All arguments but the last two are
    addresses; runs: RUN [1]; matrices: MATRIX [L * N_MATRICES + 1], the head last; inputs: ACTIVATION [N_INPUTS].
    """
    run, matrices, inputs = _runs_at(runs)[0], _matrices_at(matrices), _inputs_at(inputs)
    if thread == 0:
        begin_pass(team, job)
    looks = 0
    while True:
        ticket = look(team, job)
        if ticket < 0:
            return
        phase, item = phase_of(ticket), item_of(ticket)
        is_over = phase > run.L * LAYER_PHASES + 2
        if is_over and thread == 0:
            end_pass(team)
            return
        n = 0 if is_over else n_items(run, matrices, phase)
        if item < n:
            some = share(n - item, run.threads)
            if take(team, ticket, some):
                for i in range(item, item + some):
                    do_item(run, matrices, inputs, phase, i, thread)
                end_items(team, ticket, some, n)
            looks = 0
            continue
        looks += 1
        if is_time_to_leave(looks, thread):
            return
