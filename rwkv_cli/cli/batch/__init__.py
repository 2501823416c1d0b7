"""`rwkv generate --batch`: a file of prompts in, a file of results out.

lines    a file of prompts, opened
results  where results go: standard output, or the file that --resume continues
"""
