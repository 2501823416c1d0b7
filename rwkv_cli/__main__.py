"""The program `rwkv`, also as `python -m rwkv_cli`."""

import sys


def main() -> None:
    """Run the command line; an interrupt is no traceback, even while modules are still imported."""
    try:
        from rwkv_cli.cli.main import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
