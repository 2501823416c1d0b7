"""Shared by tests: models in memory and in files, plain twins of kernels, an emulated GPU, a hub on this machine."""
