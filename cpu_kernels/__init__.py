"""Kernels for the CPU, in Numba. Nothing here knows of files, tokens or commands; it imports nothing from rwkv_cli.

Without Numba, which a run needs only once, to compile:

    compiled      entry points as machine code, from Numba or from the cache
    cache         machine code on disk
    instructions  the integer dot product, by each CPU's own instruction
    layout        sizes, and tables of weights and buffers
    team          the threads that compute

With Numba:

    simd          vectors as Numba values
    dot           the integer dot product
    tickets       who of a team does what
    elementwise   norms, token shift, activation functions, rounding to int8
    integer       dot products of int8 and int4 weights
    floating      dot products of float weights
    matrix        a matrix times the activations of some tokens
    hidden        ffn.value times the hidden units, most of which are zero
    wkv7          the recurrence of one head
    layers        what a layer computes, one item of work at a time
    forward       the sequence of all of them: a chunk of tokens, from embedding to logits
    bandwidth     how fast memory is read, the limit of decoding
    trie          greedy longest match over bytes, for the World tokenizer
"""
