"""From any readable model to a model file.

conversion         a published checkpoint, or a model file of another type
cache              converted checkpoints, so that each is quantized once
adapter_config     how an adapter was trained, as the package peft records it
lora               adapters that are merged into the weights
calibration        rounding to int4 with a look at activations
quantization_loss  what a conversion has cost
"""
