"""CPU kernels in Numba. They know nothing of files, tokenizers or commands, and import nothing from rwkv_cli.

Plain Python, without Numba, which is imported only to compile:

    abi           sizes, and the records that describe weights, buffers and a pass
    aot           entry points as machine code, compiled by Numba or loaded from the cache
    cache         machine code on disk
    instructions  the integer dot product, by each CPU's own instruction
    thread_team   the compute threads

Compiled by Numba, each module using those above it:

    simd          vectors as Numba values
    dot           the integer dot product
    work_queue    how threads share the items of a phase
    elementwise   norms, token shift, activation functions, quantization to int8
    dot_int       dot products of int8 and int4 weights
    dot_float     dot products of float weights
    matrix        a matrix times the activations of some tokens
    sparse_ffn    ffn.value times the hidden units, most of which are zero
    wkv7          the recurrence of one head
    layers        what a layer computes, one item of work at a time
    forward       the forward pass of a chunk of tokens, from embedding to logits
    bandwidth     how fast memory is read, the limit of decoding
    trie          greedy longest match over bytes, for the World tokenizer
"""
