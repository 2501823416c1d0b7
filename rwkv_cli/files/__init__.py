"""File formats. Nothing in a file is trusted: sizes, offsets and values are checked before they are used.

atomic          files that appear complete or not at all
safetensors     the container of our files: mapped for reading, streamed for writing
quantization    rounding weights to int8 and int4
weight_layouts  how a model file stores each tensor
pipeline        several tensors at a time, in order
model_file      everything that generation needs, in one file
weight_source   what all sources of weights have in common
checkpoints     readers of published models
export          writers of files for other programs
"""
