"""Datasets of prompts: rows in, rows with answers out, each of them once.

question  what a row asks: a prompt, perhaps with options of its own
lines     the lines of a file, read lazily
job       what all rows have in common, and a model that is loaded for it
"""
