"""The parts of the CUDA backend: the device, its kernels, the weights on it, and the steps of a pass."""
