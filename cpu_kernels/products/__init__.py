"""Matrix products, from the dot product of one instruction to a matrix times the activations of some tokens.

dot         the integer dot product
dot_int     dot products of int8 and int4 weights
dot_float   dot products of float weights
matrix      a matrix times the activations of some tokens
sparse_ffn  ffn.value times the hidden units, most of which are zero
"""
