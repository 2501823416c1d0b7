"""Matrix products, from the dot product of one instruction to a matrix times the activations of some tokens.

dot         the integer dot product
dot_int     dot products of int8 and int4 weights
dot_float   dot products of float weights
packing     integer weights repacked into tiles with a byte for each
amx         products of integer weights with many tokens in the tile registers of AMX
matrix      a matrix times the activations of some tokens
sparse_ffn  ffn.value times the hidden units, most of which are zero
"""
