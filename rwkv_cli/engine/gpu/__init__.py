"""What the CUDA backend is made of: the device, its programs, the weights on it, and the operations of a pass."""
