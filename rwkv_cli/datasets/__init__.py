"""Datasets of prompts: rows in, rows with answers out, each of them once.

question  what a row asks: a prompt, perhaps with options of its own
lines     the lines of a file, read lazily
job       what all rows have in common, and a model that is loaded for it
columns   which columns of a dataset mean what
storage   files, here and wherever fsspec reads
table     what every file format has; jsonl and parquet are the formats
plan      shards, and the manifest that keeps them
run       a batch from its input to its output, begun or continued
replica   a model that answers rows on a thread of its own; worker reads and writes their shards
executor  what has shards answered: one replica here, or processes, or `rwkv_cli.ray`
"""
