"""The GPUs of this machine, found before the tests hide them."""

from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError

FOUND: tuple[probe.GpuFacts, ...]
try:
    FOUND = probe.gpus()
except DeviceError:
    FOUND = ()
