"""Many prompts: `rwkv generate --batch`, with a file of results, and `rwkv batch`, with datasets.

lines    a file of prompts, opened
dataset  what executes `rwkv batch`, and what is shown
results  where results go: standard output, or the file that --resume continues
"""
