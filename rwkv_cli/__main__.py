"""`python -m rwkv_cli` is `rwkv`."""

from rwkv_cli.cli.main import main

if __name__ == "__main__":
    main()
