#!/usr/bin/env python3
"""Make the embedded model from its published checkpoint.

    python scripts/build_gosling.py gosling.pth

The model's tokenizer.json has to be in the folder of gosling.pth. The result is rwkv_cli/data/gosling.safetensors; the
same checkpoint always gives the same bytes.
"""

import argparse
import hashlib
from pathlib import Path

from rwkv_cli import paths
from rwkv_cli.convert.conversion import convert_checkpoint
from rwkv_cli.files.checkpoints import open_checkpoint

CHECKPOINT_SHA256 = "3430cd75b9987dcd2c9404995f91f2ced89f2cc86433bc8deef0882042ac2c7e"
TOKENIZER_SHA256 = "36fe3fe0faa6dbcd5a45ef72df47fada04e19d2fbb5c98f907fb0decfba70f9f"


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(path: Path, expected: str) -> None:
    """Exit unless the file has the expected SHA-256."""
    if sha256(path) != expected:
        raise SystemExit(f"{path} is not the expected file, whose SHA-256 is {expected}")


def main() -> None:
    """Check the files named on the command line and convert them to int8."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="gosling.pth, with tokenizer.json in the same folder")
    parser.add_argument("--output", type=Path, default=paths.EMBEDDED_MODEL, help="the model file to write")
    arguments = parser.parse_args()
    check(arguments.checkpoint, CHECKPOINT_SHA256)
    check(arguments.checkpoint.with_name("tokenizer.json"), TOKENIZER_SHA256)
    with open_checkpoint(arguments.checkpoint) as checkpoint:
        convert_checkpoint(checkpoint, arguments.output, "int8")
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {size:,} bytes, sha256 {sha256(arguments.output)}")


if __name__ == "__main__":
    main()
