"""Models by name, and the way from a name to a file on this machine.

names        how models, repositories and addresses may be written
entries      models.toml, read and checked
reference    what a user may write for a published model: a name, hf:owner/repo/file or a URL
registry     the models that are known by name
recommended  which of them suits this machine
model_store  the models that were pulled
newest       what the publisher has now, beside the models that are known
pull         download, verify and quantize, in one go
quantize     a model file with weights of another type
hub          downloads: the only package that uses the network
"""
