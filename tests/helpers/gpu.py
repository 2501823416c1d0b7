"""The GPUs of this machine, found before the tests hide them."""

from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError

try:
    FOUND = probe.gpus()
except DeviceError:
    FOUND = ()
