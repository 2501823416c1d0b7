"""What the kernels and those who call them agree upon: sizes, and the tables of weights and buffers that all work on.

Dimension letters are those of `rwkv_cli.config`; T tokens are read together. Nothing here needs Numba.
"""

import numpy as np

LANES = 16
"""Floats of a vector, and output rows of a tile."""

CACHE_LINE = 64  # bytes

GROUP = 64
"""Values that share a scale."""

BLOCK = 64
"""Output rows that make one item of work: one head, and four tiles."""
PACKED_BYTES = BLOCK * GROUP
"""Scratch room of each thread, for `cpu_kernels.sparse_ffn.dense_rows`."""

PROBE_BLOCK = 1 << 18
"""Bytes of an item of work of `cpu_kernels.bandwidth`."""

# --- matrices

INT8, INT4, FLOAT16, FLOAT32, SMALL = range(5)
"""Kinds of weights. SMALL are those of low-rank maps in int8, whose activations stay floats."""

MATRIX = np.dtype(
    [
        ("kind", np.int64),
        ("rows", np.int64),  # R, padded to a multiple of 16
        ("cols", np.int64),  # K, a multiple of 64 for integers, of 4 for SMALL and floats
        ("weights", np.int64),  # the address of its R / 16 tiles
        ("scales", np.int64),  # for integers, the address of bfloat16 [R/16, ceil(K/64), 16]
    ]
)
"""Where a matrix lies and what it is made of."""

ACTIVATION = np.dtype(
    [
        ("cols", np.int64),  # K
        ("x", np.int64),  # the address of float32 [T, K]
        ("xq", np.int64),  # of int8 [T, K], x = xq * scale, see `elementwise.quantize`
        ("scale", np.int64),  # of float32 [T, K/64]
        ("sums", np.int64),  # of int32 [T, K/64]: the sums of xq
    ]
)
"""Where the inputs of a matrix lie."""

# --- layers

# The matrices of a layer, in the order of the table `matrices`.
RECEPTANCE, KEY, VALUE, W1, A1, V1, G1, W2, A2, V2, G2, OUTPUT, FFN_KEY, FFN_VALUE = range(14)
N_MATRICES = 14

# The vectors [C] of a layer, in the order of the table `vectors`.
(
    X_R,
    X_K,
    X_V,
    X_W,
    X_A,
    X_G,
    W0,
    A0,
    V0,
    K_K,
    K_A,
    R_K,
    LN_X_W,
    LN_X_B,
    LN1_W,
    LN1_B,
    LN2_W,
    LN2_B,
    FFN_X_K,
) = range(19)
N_VECTORS = 19

# The inputs of matrices, in the order of the table `inputs`; the first six follow the order of the vectors.
IN_R, IN_K, IN_V, IN_W, IN_A, IN_G, LOW_W, LOW_A, LOW_V, LOW_G, GATED, IN_FFN, HIDDEN, IN_HEAD = range(14)
N_INPUTS = 14
LOW_RANK_INPUTS = (IN_W, IN_A, IN_V, IN_G)  # of w1, a1, v1, g1

RUN = np.dtype(
    [
        (name, np.int64) for name in ("L", "C", "F", "T", "threads", "room", "all_logits")
    ]  # all_logits: after each token, or the last only
    + [
        (name, np.int64)  # an address of float32, but where it says otherwise
        for name in (
            "tokens",  # int64 [T]
            "embedding",  # kind embedding_kind [V, C]
            "embedding_scales",  # bfloat16 [V, C/64]
            "embedding_kind",  # not an address: a kind of `cpu_kernels.matrix`
            "norms",  # [4, C]: weight and bias of ln0, weight and bias of ln_out
            "vectors",  # [L, N_VECTORS, C]
            "shift_att",  # [L, C]  the state
            "shift_ffn",  # [L, C]  the state
            "wkv",  # [L, H, N, N]  the state, by key
            "x",  # [T, C]  the residual stream
            "u",  # [T, C]  the normalised input of a mix
            "last",  # [T, C]  the normalised input of the token before
            "r",  # [T, C]
            "k",  # [T, C]
            "v",  # [T, C]
            "v_first",  # [T, C]
            "w",  # [T, C]  decay
            "a",  # [T, C]  in-context learning rate, later times kk
            "vg",  # [T, C]  gate of the value residual
            "g",  # [T, C]  output gate
            "kk",  # [T, C]  removal key
            "out",  # [T, C]  what a mix adds to the residual stream
            "active",  # uint8 [T, F]  which of them are not zero
            "counts",  # int32 [T, F/64]  and how many in each group
            "h",  # [threads, room, 64]  hidden units of a block
            "packed",  # uint8 [threads, PACKED_BYTES]
            "logits",  # [T or 1, V padded to 64]
        )
    ]
)
"""Sizes, weights, state and buffers of one forward pass."""

# --- the trie of `cpu_kernels.trie`

EMPTY = -1
"""The key of an edge that is not there."""
