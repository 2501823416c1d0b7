"""Running a model: token ids in, token ids out. Text, names and users are the business of the rooms above.

state        all that a model remembers, in a fixed size
state_arrays its arrays in a file
heat_map     what it looks like
session      one mutable timeline: state, logits, number of tokens, sampler; its frozen form is a snapshot
sampling     the choice of the next token
generate     the token loop
batch        many sequences, each with its state in a slot
token_ids    checks of what a caller passes
bench        how fast a model runs
perplexity   how well it predicts a text
backends     what computes: one class with defaults, one table
gpu          what the CUDA backend is made of
"""
