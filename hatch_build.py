"""Builds machine code of the CPU kernels into wheels and checkouts, so that the first run need not compile it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "RWKV_BUILD_KERNELS"
"""Environment variable: `native`, for the CPU of this machine; `all`, see `cpu_kernels.runtime.targets`; or `none`."""


class KernelsHook(BuildHookInterface):  # type: ignore[misc]  # mypy does not look at it
    """Runs when a wheel is built, or a checkout is installed, before files are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Build what is missing; the installation works without, so nothing that fails here ends it."""
        which = os.environ.get(KERNELS) or "native"
        if which == "none":
            return
        command = [sys.executable, "-m", "cpu_kernels.runtime.prebuilt", which]
        done = subprocess.run(
            command, cwd=self.root, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            self.app.display_warning(f"kernels are not built, the first run will compile them: {reason}")
