"""What a layer computes, one item of work at a time.

The formulas are those of `engine.backends.reference`; dimension letters are those of `rwkv_cli.config`. T tokens are
read together: T = 1 when one text is generated, more when a prompt is read or for many texts. Only the token shift and
the recurrence know which text a token belongs to. The caller has allocated all buffers. The names that all functions
share, whose fields are described in `cpu_kernels.abi`:

    run        RUN: the sizes, weights, tokens, states and buffers of the pass
    matrices   MATRIX [L * N_MATRICES + 1], the matrices of all layers; `matrix` is the number of a layer's first
    inputs     ACTIVATION [N_INPUTS], the inputs of matrices
    vectors    the address of a layer's vectors, float32 [N_VECTORS, C]
    m, act     MATRIX and ACTIVATION: a matrix, and the input that it is multiplied with

Parameters without a type are int64: addresses, sizes and numbers of items, tokens and layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from cpu_kernels import elementwise as el
from cpu_kernels import wkv7
from cpu_kernels.abi import (
    A0,
    ACTIVATION,
    BLOCK,
    FFN_X_K,
    G1,
    GATED,
    GROUP,
    HEAD_SIZE,
    IN_G,
    IN_R,
    IN_V,
    K_A,
    K_K,
    LN0_B,
    LN0_W,
    LN1_B,
    LN1_W,
    LN2_B,
    LN2_W,
    LN_OUT_B,
    LN_OUT_W,
    LN_X_B,
    LN_X_W,
    LOW_RANK_INPUTS,
    LOW_W,
    MATRIX,
    N_SCRATCH_BUFFERS,
    R_K,
    RECEPTANCE,
    RUN,
    STATE,
    TOKEN,
    V0,
    V2,
    W0,
    W1,
    W2,
    X_R,
)
from cpu_kernels.elementwise import FLOAT
from cpu_kernels.products.dot_int import SCALE_BYTES
from cpu_kernels.products.matrix import FLOAT16, INT8, is_integer, rows_times_tokens
from cpu_kernels.products.sparse_ffn import (
    dense_rows,
    find_active_f32,
    find_active_i8,
    n_read_densely,
    sparse_rows,
)
from cpu_kernels.records import table
from cpu_kernels.simd import (
    LANES,
    get_bf16,
    get_i64,
    load,
    load_f16,
    load_i8_as_f32,
    splat,
    stack_memory,
    store,
)
from cpu_kernels.wkv7 import HEAD_BYTES

# Numba would compile a function once more for each constant that it is given, if they were Python's integers.
TILES = np.int64(BLOCK // LANES)  # of a block of rows
HEAD_TILES = np.int64(HEAD_SIZE // LANES)
HEAD_STRIDE = np.int64(HEAD_BYTES)

tokens_at, states_at = table(TOKEN), table(STATE)
_removed = stack_memory(HEAD_BYTES)


@njit
def at(buffer, t, width):
    """The address of row t of a float buffer [T, width]."""
    return buffer + t * width * FLOAT


@njit
def embed(run: RUN, t):
    """x = LN(embedding of the token; ln0). An item is a token."""
    C = run.C
    x = at(run.x, t, C)
    row = tokens_at(run.tokens)[t].id * C
    for i in range(0, C, LANES):
        if run.embedding_kind == INT8:
            scale = get_bf16(run.embedding_scales + (row + i) // GROUP * SCALE_BYTES)
            store(x + i * FLOAT, load_i8_as_f32(run.embedding + row + i) * splat(scale))
        elif run.embedding_kind == FLOAT16:
            store(x + i * FLOAT, load_f16(run.embedding + (row + i) * 2))
        else:
            store(x + i * FLOAT, load(run.embedding + (row + i) * 4))
    el.layer_norm(x, x, at(run.norms, LN0_W, C), at(run.norms, LN0_B, C), C)


@njit
def shift_inputs(run: RUN, t, weight, bias, shift):
    """u = LN(x) of token t, and last = the same of the token before, which for a first one is in the state: `shift`."""
    C, previous = run.C, tokens_at(run.tokens)[t].previous
    el.layer_norm(at(run.u, t, C), at(run.x, t, C), weight, bias, C)
    if previous < 0:
        el.copy(at(run.last, t, C), shift, C)
    else:
        el.layer_norm(at(run.last, t, C), at(run.x, previous, C), weight, bias, C)


@njit
def keep_shift(run: RUN, t, shift, block):
    """A block of channels of u, for the token after t: in the state, once no token of the pass reads that any more."""
    C = run.C
    el.copy(at(shift, block, BLOCK), at(at(run.u, t, C), block, BLOCK), BLOCK)


@njit
def quantize_input(act: ACTIVATION, t):
    """Round token t's row of an input to int8, for the integer kernels."""
    K = act.cols
    groups = t * (K // GROUP)
    el.quantize(act.xq + t * K, at(act.scale, groups, 1), at(act.sums, groups, 1), at(act.x, t, K), K)


@njit
def mix_time(run: RUN, inputs: Sequence[ACTIVATION], vectors, layer, t):
    """The six inputs of the time mix, blended by token shift. An item is a token."""
    C, source = run.C, states_at(run.states)[tokens_at(run.tokens)[t].source]
    shift_inputs(run, t, at(vectors, LN1_W, C), at(vectors, LN1_B, C), at(source.shift_att, layer, C))
    for i in range(IN_R, IN_G + 1):
        el.token_shift(at(inputs[i].x, t, C), at(run.u, t, C), at(run.last, t, C), at(vectors, X_R + i, C), C)
        if i <= IN_V:  # the others are inputs of low-rank maps, whose activations stay floats
            quantize_input(inputs[i], t)


@njit
def project(run: RUN, matrices: Sequence[MATRIX], inputs: Sequence[ACTIVATION], matrix, item):
    """The first halves of the low-rank maps, see `low_rank_item`; then r, k and v, an item for each block of rows."""
    C, T = run.C, run.T
    n_low_rank, blocks = n_low_rank_items(run, matrices, matrix), C // BLOCK
    if item < n_low_rank:
        low_rank_item(run, inputs, matrices, matrix, item)
    else:
        i, block = (item - n_low_rank) // blocks, (item - n_low_rank) % blocks
        out = at(run.r if i == 0 else run.k if i == 1 else run.v, block, BLOCK)
        rows_times_tokens(
            out, C * FLOAT, matrices[matrix + RECEPTANCE + i], block * TILES, TILES, inputs[IN_R + i], T
        )


@njit
def low_rank_tiles(run: RUN):
    """Tiles of an item of the first halves of the low-rank maps: one for a single token, see `output_rows`."""
    return 2 if run.T > 1 else 1


@njit
def n_low_rank_items(run: RUN, matrices: Sequence[MATRIX], matrix):
    """The items of w1, a1, v1 and g1 of the layer whose matrices begin at `matrix`."""
    n = 0
    for i in range(4):
        n += items_of(run, matrices[matrix + W1 + i])
    return n


@njit
def items_of(run: RUN, m: MATRIX):
    """The items of the first half of one low-rank map."""
    n = low_rank_tiles(run)
    return (m.rows // LANES + n - 1) // n


@njit
def low_rank_item(run: RUN, inputs: Sequence[ACTIVATION], matrices: Sequence[MATRIX], matrix, item):
    """Tiles of w1, a1, v1 or g1 times their input, with the activation function between the two halves of the map."""
    i, T = 0, run.T
    while item >= items_of(run, matrices[matrix + W1 + i]):
        item -= items_of(run, matrices[matrix + W1 + i])
        i += 1
    m, source, hidden = matrices[matrix + W1 + i], inputs[LOW_RANK_INPUTS[i]], inputs[LOW_W + i]
    tile = item * low_rank_tiles(run)
    n = min(low_rank_tiles(run), m.rows // LANES - tile)
    rows_times_tokens(at(hidden.x, tile, LANES), hidden.cols * FLOAT, m, tile, n, source, T)
    for t in range(T):
        for j in range(tile, tile + n):
            y = at(at(hidden.x, t, hidden.cols), j, LANES)
            if W1 + i == W1:
                store(y, el.tanh(load(y)))
            elif W1 + i == G1:
                store(y, el.sigmoid(load(y)))


@njit
def heads(
    run: RUN, matrices: Sequence[MATRIX], inputs: Sequence[ACTIVATION], matrix, vectors, layer, head, thread
):
    """The second halves of the low-rank maps, the recurrence, and the gated output. An item is a head.

    What only this item needs is in the thread's scratch memory, [T, N] each, where it stays in the cache.
    """
    T, column = run.T, head * HEAD_BYTES
    w, a, vg = scratch(run, thread, 0), scratch(run, thread, 1), scratch(run, thread, 2)
    g, kk = scratch(run, thread, 3), scratch(run, thread, 4)
    for i in range(4):
        if W2 + i == V2 and layer == 0:
            continue
        out = w if i == 0 else a if i == 1 else vg if i == 2 else g
        m = matrices[matrix + W2 + i]
        rows_times_tokens(out, HEAD_STRIDE, m, head * HEAD_TILES, HEAD_TILES, inputs[LOW_W + i], T)
    for t in range(T):
        row, local = column + t * run.C * FLOAT, t * HEAD_BYTES
        head_inputs(run, vectors + column, layer, row, w + local, a + local, vg + local, kk + local)
    recurrence(run, inputs[GATED], layer, head, w, a, kk)
    for t in range(T):
        row, local = column + t * run.C * FLOAT, t * HEAD_BYTES
        head_output(run, inputs[GATED], vectors + column, row, g + local, t, head)


@njit
def scratch(run: RUN, thread, i):
    """The address of buffer i of a thread, float32 [T, 64]."""
    return at(run.scratch, (thread * N_SCRATCH_BUFFERS + i) * run.capacity, BLOCK)


@njit
def head_inputs(run: RUN, vectors, layer, row, w, a, vg, kk):
    """What the recurrence takes of one token of one head, in place: w, a and kk, and the head's channels of k and v.

    `row` is the offset of the head's channels of the token in a buffer [T, C], `vectors` the address of the layer's
    vectors from the head's channels on.
    """
    C, v = run.C, run.v + row
    wkv7.decay(w, at(vectors, W0, C))
    if layer == 0:
        el.copy(run.v_first + row, v, HEAD_SIZE)
    else:
        wkv7.value_residual(v, run.v_first + row, vg, at(vectors, V0, C))
    wkv7.keys(kk, a, run.k + row, at(vectors, K_K, C), at(vectors, K_A, C), at(vectors, A0, C))


@njit
def recurrence(run: RUN, gated: ACTIVATION, layer, head, w, a, kk):
    """The states of one head after each token, and what they give for r, in the head's channels of gated.x."""
    C = run.C
    S = (layer * (C // HEAD_SIZE) + head) * HEAD_SIZE * HEAD_BYTES
    tokens, states, m = tokens_at(run.tokens), states_at(run.states), _removed(0)
    for t in range(run.T):
        token, row, local = tokens[t], (t * C + head * HEAD_SIZE) * FLOAT, t * HEAD_BYTES
        source, target = states[token.source].wkv + S, states[token.target].wkv + S
        r, k, v, y = run.r + row, run.k + row, run.v + row, gated.x + row
        if t == 0 or not follows(run, t):
            wkv7.removal(m, source, kk + local)
        next_kk = kk + (local + HEAD_BYTES if t + 1 < run.T else local)
        wkv7.step(y, target, source, r, w + local, k, v, a + local, m, next_kk)
        if token.is_last:
            keep_shift(run, t, at(states[token.target].shift_att, layer, C), head)


@njit
def follows(run: RUN, t):
    """Whether token t, which is not the first, continues from the state after the token in the row before."""
    tokens = tokens_at(run.tokens)
    return tokens[t].previous == t - 1 and tokens[t].source == tokens[t - 1].target


@njit
def head_output(run: RUN, gated: ACTIVATION, vectors, row, g, t, head):
    """The gated output of one token of one head, as floats and rounded to int8."""
    C, y = run.C, gated.x + row
    norm_weight, norm_bias = at(vectors, LN_X_W, C), at(vectors, LN_X_B, C)
    wkv7.finish(y, run.r + row, run.k + row, run.v + row, g, at(vectors, R_K, C), norm_weight, norm_bias)
    group = t * (C // GROUP) + head * (HEAD_SIZE // GROUP)  # the first one of the head
    el.quantize(gated.xq + group * GROUP, at(gated.scale, group, 1), at(gated.sums, group, 1), y, HEAD_SIZE)


@njit
def output_rows(run: RUN):
    """Rows of `output` per item: few for a single token, so that no thread runs out of items long before the others."""
    return BLOCK if run.T > 1 else LANES


@njit
def add_output(run: RUN, m: MATRIX, gated: ACTIVATION, item):
    """x += output (y * g). An item is a block of rows, or a tile."""
    C, n = run.C, output_rows(run)
    column = item * n * FLOAT
    rows_times_tokens(run.out + column, C * FLOAT, m, item * n // LANES, n // LANES, gated, run.T)
    for t in range(run.T):
        el.add(at(run.x, t, C) + column, at(run.out, t, C) + column, n)


@njit
def mix_channels(run: RUN, act: ACTIVATION, vectors, layer, t):
    """The input of the channel mix, blended by token shift. An item is a token."""
    C, source = run.C, states_at(run.states)[tokens_at(run.tokens)[t].source]
    shift_inputs(run, t, at(vectors, LN2_W, C), at(vectors, LN2_B, C), at(source.shift_ffn, layer, C))
    el.token_shift(at(act.x, t, C), at(run.u, t, C), at(run.last, t, C), at(vectors, FFN_X_K, C), C)
    quantize_input(act, t)


@njit
def n_dense(run: RUN, m: MATRIX):
    """How many tokens, from the first on, ffn.value multiplies densely, with all their hidden units.

    Only the tokens after them need lists of non-zero units. m is ffn.key or ffn.value, whose types are the same.
    """
    return n_read_densely(run.T) if is_integer(m) else 0


@njit
def hidden_units(run: RUN, m: MATRIX, act: ACTIVATION, hidden: ACTIVATION, block, thread):
    """h = relu(ffn.key x)**2, and lists of its non-zero units. An item is a block of 64 units, which is one group."""
    F, T = run.F, run.T
    h, stride = at(hidden.x, block, BLOCK), F
    if is_integer(m):  # which need it only to quantize it: it can stay in the cache
        h, stride = scratch(run, thread, 0), BLOCK
    rows_times_tokens(h, stride * FLOAT, m, block * TILES, TILES, act, T)
    for t in range(T):
        group = t * (F // GROUP) + block
        el.square_relu(at(h, t, stride), GROUP)
        if is_integer(m):
            scale, sums = at(hidden.scale, group, 1), at(hidden.sums, group, 1)
            el.quantize(hidden.xq + group * GROUP, scale, sums, at(h, t, stride), GROUP)
            if t >= n_dense(run, m):
                find_active_i8(
                    run.active + group * GROUP, at(run.counts, group, 1), hidden.xq + group * GROUP
                )
        else:
            find_active_f32(run.active + group * GROUP, at(run.counts, group, 1), at(h, t, stride))


@njit
def add_hidden(run: RUN, m: MATRIX, hidden: ACTIVATION, layer, block):
    """x += ffn.value h. An item is a block of 64 channels."""
    C, F = run.C, run.F
    for t in range(run.T):
        token = tokens_at(run.tokens)[t]
        if token.is_last:
            keep_shift(run, t, at(states_at(run.states)[token.target].shift_ffn, layer, C), block)
    x, dense = at(run.x, block, BLOCK), n_dense(run, m)
    if dense:
        dense_rows(x, C * FLOAT, m, block, hidden, dense)
    for t in range(dense, run.T):
        groups = t * (F // GROUP)
        sparse_rows(at(x, t, C), m, block, hidden, t, run.active + t * F, at(run.counts, groups, 1))


@njit
def head_input(run: RUN, act: ACTIVATION, t):
    """LN(x; ln_out) of the tokens whose logits are wanted. An item is a token."""
    C = run.C
    x = at(run.x, get_i64(run.wanted + 8 * t), C)
    el.layer_norm(at(act.x, t, C), x, at(run.norms, LN_OUT_W, C), at(run.norms, LN_OUT_B, C), C)
    quantize_input(act, t)


@njit
def head(run: RUN, m: MATRIX, act: ACTIVATION, block):
    """The logits. An item is a block of the vocabulary."""
    tiles = min(TILES, m.rows // LANES - block * TILES)
    logits = at(run.logits, block, BLOCK)
    rows_times_tokens(logits, m.rows * FLOAT, m, block * TILES, tiles, act, run.n_wanted)
