"""What the kernels and their callers agree on: sizes, and the records that describe weights, buffers and a pass.

Dimension letters are those of `rwkv_cli.config`; T tokens are read together. Nothing here needs Numba. An address is
that of a contiguous array, as an int64.
"""

import numpy as np

# --- sizes

LANES = 16
"""Floats of a vector, and output rows of a tile."""

CACHE_LINE = 64  # bytes

HEAD_SIZE = 64
"""N: channels of a head. Its state is [N, N]."""

GROUP = 64
"""Values that share a scale when they are quantized: columns of a matrix, channels of an activation."""

BLOCK = 64
"""Output rows of an item of work, and output channels of a row of `ffn.value`, see `products.sparse_ffn`."""

# What the kernels take for granted about these sizes.
assert HEAD_SIZE == 4 * LANES, "`wkv7.step` holds a row of a head's state in four vectors"
assert HEAD_SIZE % GROUP == 0, "`layers.head_step` quantizes the output of one head at a time"
assert HEAD_SIZE % BLOCK == 0, "channels are whole heads, and `forward.n_items` takes them for whole blocks"
assert GROUP == 4 * LANES, "`dot_int` reads a group as eight pairs of quads"
assert BLOCK == 4 * LANES, "`sparse_ffn` holds the output channels of a block in four vectors"
assert BLOCK == GROUP, "`layers.hidden_units` quantizes the block of hidden units that it has computed"

N_SCRATCH_BUFFERS = 5
"""Buffers of a thread for what one item of work needs: as many as the recurrence of a head takes."""

PROBE_BLOCK = 1 << 18
"""Bytes of an item of work of `cpu_kernels.bandwidth`."""

# --- matrices

INT8, INT4, FLOAT16, FLOAT32, SMALL = range(5)
"""Kinds of weights. SMALL: those of low-rank maps in int8, whose activations stay floats."""

MATRIX = np.dtype(
    [
        ("kind", np.int64),
        ("rows", np.int64),  # R, padded to a multiple of 16
        ("cols", np.int64),  # K, a multiple of 64 for integers, of 4 for SMALL and floats
        ("weights", np.int64),  # the address of its R / 16 tiles, or C / 64 blocks of ffn.value
        ("scales", np.int64),  # for integers, the address of bfloat16 [R/16, ceil(K/64), 16]
    ]
)
"""A matrix [R, K]: its type, shape and memory. See `cpu_kernels.products.matrix` for the layouts."""

ACTIVATION = np.dtype(
    [
        ("cols", np.int64),  # K
        ("x", np.int64),  # the address of float32 [T, K]
        ("xq", np.int64),  # of int8 [T, K], x = xq * scale, see `elementwise.quantize`
        ("scale", np.int64),  # of float32 [T, K/64]
        ("sums", np.int64),  # of int32 [T, K/64]: the sums of xq
    ]
)
"""The input of a matrix, of T tokens: as floats, and rounded to int8 for integer weights."""

# --- layers

MATRICES = tuple(
    (
        "att.receptance.weight att.key.weight att.value.weight "
        "att.w1 att.a1 att.v1 att.g1 "
        "att.w2 att.a2 att.v2 att.g2 "
        "att.output.weight ffn.key.weight ffn.value.weight"
    ).split()
)
"""The matrices of a layer, by their names in a checkpoint, in the order of the table `matrices`.

The kernels loop over the first three, whose inputs are IN_R to IN_V, and over each half of the low-rank maps, whose
inputs are `LOW_RANK_INPUTS`, and LOW_W to LOW_G. Layer 0 has no v1 and v2.
"""
N_MATRICES = len(MATRICES)

RECEPTANCE = MATRICES.index("att.receptance.weight")
W1, G1 = MATRICES.index("att.w1"), MATRICES.index("att.g1")
W2, V2 = MATRICES.index("att.w2"), MATRICES.index("att.v2")
OUTPUT = MATRICES.index("att.output.weight")
FFN_KEY, FFN_VALUE = MATRICES.index("ffn.key.weight"), MATRICES.index("ffn.value.weight")

VECTORS = tuple(
    (
        "att.x_r att.x_k att.x_v att.x_w att.x_a att.x_g "
        "att.w0 att.a0 att.v0 "
        "att.k_k att.k_a att.r_k "
        "att.ln_x.weight att.ln_x.bias "
        "ln1.weight ln1.bias ln2.weight ln2.bias "
        "ffn.x_k"
    ).split()
)
"""The vectors [C] of a layer, by their names in a checkpoint, in the order of the table `vectors`.

The kernels loop over the first six, which make the inputs IN_R to IN_G. Layer 0 has no v0.
"""
N_VECTORS = len(VECTORS)

X_R, FFN_X_K = VECTORS.index("att.x_r"), VECTORS.index("ffn.x_k")
W0, A0, V0 = VECTORS.index("att.w0"), VECTORS.index("att.a0"), VECTORS.index("att.v0")
K_K, K_A, R_K = VECTORS.index("att.k_k"), VECTORS.index("att.k_a"), VECTORS.index("att.r_k")
LN_X_W, LN_X_B = VECTORS.index("att.ln_x.weight"), VECTORS.index("att.ln_x.bias")
LN1_W, LN1_B = VECTORS.index("ln1.weight"), VECTORS.index("ln1.bias")
LN2_W, LN2_B = VECTORS.index("ln2.weight"), VECTORS.index("ln2.bias")

NORMS = ("blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias")
"""The vectors [C] of the norms outside the layers, in the order of the table `norms`."""

LN0_W, LN0_B, LN_OUT_W, LN_OUT_B = range(len(NORMS))

N_INPUTS = 14
IN_R, IN_K, IN_V, IN_W, IN_A, IN_G, LOW_W, LOW_A, LOW_V, LOW_G, GATED, IN_FFN, HIDDEN, IN_HEAD = range(
    N_INPUTS
)
"""The inputs of matrices, in the order of the table `inputs`: the six blends of token shift, the hidden values of the
four low-rank maps, the gated output of the recurrence, the input and the hidden units of the channel mix, and the
input of the head."""

LOW_RANK_INPUTS = (IN_W, IN_A, IN_V, IN_G)  # of w1, a1, v1, g1

STATE = np.dtype(
    [
        ("shift_att", np.int64),  # the address of float32 [L, C]
        ("shift_ffn", np.int64),  # of [L, C]
        ("wkv", np.int64),  # of [L, H, N, N], by key
    ]
)
"""A recurrent state: where its parts are."""

NO_TOKEN = -1
"""In place of the row of a token."""

TOKEN = np.dtype(
    [
        ("id", np.int64),
        ("previous", np.int64),  # the row of the token before it, NO_TOKEN if only `source` knows of that
        ("source", np.int64),  # the state before it, a row of the table of states
        ("target", np.int64),  # the state after it, which may be the same
        ("is_last", np.int64),  # 1 unless the token after it continues in the same target
    ]
)
"""A token of a pass. Tokens of a sequence are in order; no two sequences have a state in common that either writes."""

RUN = np.dtype(
    [
        ("L", np.int64),
        ("C", np.int64),
        ("F", np.int64),
        ("T", np.int64),  # tokens of this pass
        ("threads", np.int64),  # that take part
        ("capacity", np.int64),  # tokens for which the buffers have room
        ("n_wanted", np.int64),  # tokens whose logits are wanted, perhaps none
        ("embedding_kind", np.int64),  # INT8, FLOAT16 or FLOAT32
    ]
    + [
        (name, np.int64)  # an address, of float32 unless another type is given
        for name in (
            "tokens",  # TOKEN [T]
            "states",  # STATE [..]
            "wanted",  # int64 [n_wanted], the rows of the tokens whose logits are wanted
            "embedding",  # of embedding_kind [V, C]
            "embedding_scales",  # bfloat16 [V, C/64], for INT8
            "norms",  # [4, C]
            "vectors",  # [L, N_VECTORS, C]
            "x",  # [T, C]  the residual stream
            "u",  # [T, C]  the normalised input of a mix
            "last",  # [T, C]  the normalised input of the token before
            "r",  # [T, C]
            "k",  # [T, C]
            "v",  # [T, C]
            "v_first",  # [T, C]
            "out",  # [T, C]  what a mix adds to the residual stream
            "active",  # uint8 [T, F]  the hidden units that are not zero, group by group: numbers from 0 to 63
            "counts",  # int32 [T, F/64]  how many each group has
            "scratch",  # [threads, N_SCRATCH_BUFFERS, capacity, 64]  what only one item of work needs
            "logits",  # [n_wanted, V padded to 16]
        )
    ]
)
"""One forward pass: its sizes, weights, tokens, states and buffers."""

# --- the choice of tokens, see `cpu_kernels.sampling`

CHOICE = np.dtype(
    [
        ("logits", np.int64),  # the address of float32 [V], which stay as they are
        ("n_changes", np.int64),
        ("changed", np.int64),  # of int64 [n_changes]: tokens, each once
        ("amounts", np.int64),  # of float64 [n_changes], added to their logits
        ("mask", np.int64),  # of uint32 [ceil(V / 32)], a bit for each token that may be chosen; 0 for all
        ("top_k", np.int64),  # 0 for all
        ("is_greedy", np.int64),  # 1: the likeliest token, the first one of those as likely
        ("top_p", np.float64),
        ("log_min_p", np.float64),  # minus infinity for all
        ("temperature", np.float64),  # above 0
        ("random", np.float64),  # in [0, 1)
        ("token", np.int64),  # the result, or NOT_A_NUMBER, NOTHING_LEFT
        ("peak", np.float64),  # the highest logit
        ("total", np.float64),  # the sum of exp(logit - peak)
    ]
)
"""The choice of one token: what is asked, and the result."""

NOT_A_NUMBER, NOTHING_LEFT = -1, -2
"""In place of a token: why none could be chosen."""

SAMPLING = np.dtype(
    [
        ("n", np.int64),  # tokens to choose
        ("V", np.int64),
        ("padded", np.int64),  # V, rounded up to a multiple of 16
        ("threads", np.int64),  # that take part
        ("choices", np.int64),  # the address of CHOICE [n]
        ("scratch", np.int64),  # of float32 [threads, N_SCRATCH, padded]
    ]
)
"""A pass that chooses tokens, each from logits of its own."""

N_SCRATCH = 4

# --- the trie of `cpu_kernels.trie`

EMPTY = -1
"""The key of an empty row of the table of edges."""
