#!/usr/bin/env python3
"""Make the packaged World vocabulary from the published text.

    python scripts/build_world_vocab.py rwkv_vocab_v20230424.txt

The text is part of the RWKV-LM repository (Apache-2.0). The result is rwkv_cli/data/world_vocabulary.bin.
"""

import argparse
from pathlib import Path

from rwkv_cli.text.tokenizer import WorldVocabulary

TARGET = Path(__file__).parent.parent / "rwkv_cli" / "data" / "world_vocabulary.bin"


def main() -> None:
    """Read the text named on the command line, check it, and write the packed form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "text",
        type=Path,
        help="the vocabulary: each line has an id, a Python literal and its length in bytes",
    )
    vocabulary = WorldVocabulary.from_text(parser.parse_args().text.read_bytes())
    packed = vocabulary.to_bytes()
    TARGET.write_bytes(packed)
    print(f"{TARGET}: {len(vocabulary):,} ids, {len(packed):,} bytes")


if __name__ == "__main__":
    main()
