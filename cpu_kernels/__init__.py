"""CPU kernels in Numba. They know nothing of files, tokenizers or commands, and import nothing from rwkv_cli.

abi          sizes, and the records that describe weights, buffers and a pass
runtime/     what runs the kernels, in plain Python: compilation, its cache, threads

Compiled by Numba, each module using those above it:

simd         vectors as Numba values
records      tables of records as Numba values
work_queue   how threads share the items of a phase
elementwise  norms, token shift, activation functions, quantization to int8
products/    dot products of int8, int4 and float weights, and what is made of them
wkv7         the recurrence of one head
layers       what a layer computes, one item of work at a time
forward      the forward pass of a chunk of tokens, from embedding to logits
bandwidth    how fast memory is read, the limit of decoding
quantize     the search for the scales of int4 weights
trie         greedy longest match over bytes, for the World tokenizer
"""
