"""The tasks of lm-evaluation-harness, which the extra `eval` brings, on this program's own engine.

log_likelihoods  how probable given continuations are: many at once, common beginnings are read once
answers          what a model writes, many at once
finished         results that are kept: an interrupted run continues from them
language_model   both as lm-eval wants them; imports it, as nothing else here does
tasks            runs tasks, and what came out
"""
