"""`rwkv generate --batch`: a file of prompts in, a file of results out.

lines     the lines of a file, read lazily
question  what a line asks: a prompt, perhaps with options of its own
results   where results go: standard output, or the file that --resume continues
"""
