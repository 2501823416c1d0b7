"""What several tests share: models in memory and in files, plain twins of kernels, a hub on this machine."""
