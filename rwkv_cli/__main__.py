"""The program `rwkv`, also as `python -m rwkv_cli`."""

import atexit
import os
import sys
from typing import NoReturn


def main() -> None:
    """Run the command line and end the process; an interrupt shows no traceback, even while modules are imported."""
    # NumPy's own threads would have nothing to do, and where the system gives none, its library ends the process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from rwkv_cli.cli.main import main

        main()
    except KeyboardInterrupt:
        _end(130)
    except SystemExit as exit:
        if not isinstance(exit.code, int):
            raise
        _end(exit.code)


def _end(code: int) -> NoReturn:
    """Exit as `sys.exit` does, but leave it to the system to take the process apart.

    Python would free its objects one by one, which takes some 70 ms, the sixth part of a short run. What was registered
    for the end still happens, and what was written still arrives.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # a closed stream or pipe: Python handles it
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    main()
