"""Matrix products of many tokens: NVIDIA's own library, which knows the tensor cores of every GPU."""

from __future__ import annotations

import ctypes
from typing import Any

from rwkv_cli.engine.gpu.launch_plan import Product
from rwkv_cli.errors import DeviceError

WORKSPACE = 32 << 20
"""Bytes that the library may use: what NVIDIA recommends for this generation, and fixed, so that results repeat."""

_FLOAT32, _FLOAT16 = 0, 2  # cudaDataType
_COMPUTE_FLOAT32 = 68  # cublasComputeType: float32 sums, whatever the inputs
_PLAIN, _TRANSPOSED = 0, 1  # cublasOperation
_DEFAULT_ALGORITHM = -1


class Blas:
    """cuBLAS."""

    def __init__(self) -> None:
        """Raises DeviceError if the library is missing."""
        from cuda.pathfinder import load_nvidia_dynamic_lib

        try:
            self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        except (RuntimeError, OSError) as error:
            raise DeviceError(f"cuBLAS is missing ({error}): pip install 'rwkv-cli[cuda]'") from None
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._used = -1, -1

    def multiply(self, product: Product, stream: int, workspace: int) -> None:
        """Start a product on a stream; at `workspace` are `WORKSPACE` bytes that nothing else uses meanwhile."""
        if (stream, workspace) != self._used:
            self._use(stream, workspace)
        x_stride, out_stride = product.x_stride or product.K, product.out_stride or product.R
        one, beta = ctypes.c_float(1), ctypes.c_float(1 if product.add else 0)
        # The library has columns where we have rows: it computes out^T [R, T] = W x^T.
        self._call(
            "cublasGemmStridedBatchedEx",
            self._handle,
            _PLAIN if product.by_input else _TRANSPOSED,
            _PLAIN,
            product.R,
            product.T,
            product.K,
            ctypes.byref(one),
            ctypes.c_void_p(product.weights),
            _FLOAT16,
            product.R if product.by_input else product.K,
            ctypes.c_longlong(product.R * product.K),
            ctypes.c_void_p(product.x),
            _FLOAT16,
            x_stride,
            ctypes.c_longlong(product.T * x_stride),
            ctypes.byref(beta),
            ctypes.c_void_p(product.out),
            _FLOAT16 if product.half else _FLOAT32,
            out_stride,
            ctypes.c_longlong(product.T * out_stride),
            product.times,
            _COMPUTE_FLOAT32,
            _DEFAULT_ALGORITHM,
        )

    def _use(self, stream: int, workspace: int) -> None:
        """Go on in another stream; the library then forgets its workspace."""
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        self._call(
            "cublasSetWorkspace_v2",
            self._handle,
            ctypes.c_void_p(workspace),
            ctypes.c_size_t(WORKSPACE),
        )
        self._used = stream, workspace

    def _call(self, name: str, *args: Any) -> None:
        if code := getattr(self._library, name)(*args):
            raise DeviceError(f"the GPU failed: {name} gave {code}")
