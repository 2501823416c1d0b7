"""How good a model is, and how far another one is from it: numbers, each with an interval.

intervals    what a sample says about the whole: bootstrap, and shares
text         how well a model predicts a text
divergence   how differently two models continue a text
questions    tasks with one right answer each
comparison   all of it, for two models
"""
