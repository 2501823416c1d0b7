"""Vocabularies behind one protocol: text to token ids and back, all at once or one token at a time.

The World vocabulary is greedy longest match over byte strings; every byte string can be encoded, and a token
may end inside a UTF-8 character. Other models bring a `tokenizer.json` of the `tokenizers` library. Both
libraries behind them, cpu_kernels and tokenizers, are imported only when they are needed.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.errors import TokenizerError, UsageError
from rwkv_cli.lazy import lazy_property
from rwkv_cli.text.tokenizers_library import check, told


@dataclass(frozen=True)
class TokenizerSpec:
    """What a file has to store so that its tokenizer can be rebuilt.

    kind "world" is greedy longest match over byte strings: data is None for the packaged World vocabulary,
    otherwise a vocabulary in the format of `rwkv_vocab_v20230424.txt`. kind "tokenizer.json" is a file of the
    `tokenizers` library: data is its bytes. ends are the ids that end a document, if the files of the model say so,
    the main one first.
    """

    kind: Literal["world", "tokenizer.json"]
    data: bytes | None = field(default=None, repr=False)
    ends: tuple[int, ...] = ()


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def name(self) -> str:
        """What kind of vocabulary this is, for display."""
        ...

    @property
    def spec(self) -> TokenizerSpec:
        """What `load_tokenizer` needs to rebuild it."""
        ...

    @property
    def vocab_size(self) -> int:
        """The highest id + 1."""
        ...

    @property
    def end_of_document(self) -> int:
        """The id that ends a document, and starts the next."""
        ...

    @property
    def text_of_end(self) -> str:
        """What stands for `end_of_document` in a text that is encoded; empty where nothing does."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of text; nothing is added at either end. Raises UsageError for text that is not Unicode."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for: empty for the end of a document and for ids without an entry."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, with U+FFFD where their bytes are not UTF-8."""
        ...


def load_tokenizer(spec: TokenizerSpec, vocab_size: int) -> Tokenizer:
    """The tokenizer of a model with vocab_size rows; models may have more rows than their tokenizer has ids.

    Raises TokenizerError when the data is damaged or has ids beyond the model's.
    """
    tokenizer: Tokenizer
    if spec.kind == "world":
        tokenizer = WorldTokenizer(spec)
    elif spec.kind == "tokenizer.json":
        tokenizer = JsonTokenizer(spec)
    else:
        raise TokenizerError(
            f"the kind of tokenizer is {spec.kind!r}: only 'world' and 'tokenizer.json' are known"
        )
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size:,} entries, the model {vocab_size:,}: "
            "they do not belong together"
        )
    return tokenizer


def _described(tokenizer: Tokenizer) -> str:
    """The line that stands for a tokenizer where a person looks at it."""
    kind = type(tokenizer).__name__
    return f"<{kind}: {tokenizer.name}, {tokenizer.vocab_size:,} tokens, {tokenizer.end_of_document} ends a document>"


def _utf8(text: str) -> bytes:
    """The UTF-8 bytes of text; bytes of the command line that were not UTF-8 (PEP 383) are kept."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text contains half a surrogate pair at position {error.start}: it is not valid Unicode"
        ) from error


# ------------------------------------------------------------------------------------------------------------
# The World vocabulary
# ------------------------------------------------------------------------------------------------------------

# One entry: id, Python literal of the string or bytes, length in bytes.
_ENTRY = re.compile(r"""(\d{1,7}) (b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")) (\d{1,7})\r?""")
# A key of the trie is node * 256 + byte and has to fit into an int32.
_MAX_VOCABULARY_BYTES = 2**23 - 1


class WorldVocabulary:
    """Byte strings by id: id i has the bytes data[offsets[i]:offsets[i + 1]], or none if that is empty.

    data is the concatenation of all byte strings, offsets int64 [highest id + 2].
    """

    def __init__(self, lengths: NDArray[np.integer[Any]], data: bytes) -> None:
        """lengths [highest id + 1] is the number of bytes of data of each id.

        Raises TokenizerError unless the lengths make up data and every single byte has an id other than 0.
        """
        self.offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=self.offsets[1:])
        self.data = data
        if not len(lengths) or self.offsets[-1] != len(data) or len(data) > _MAX_VOCABULARY_BYTES:
            raise TokenizerError("the vocabulary is damaged: its lengths do not add up")
        if lengths[0]:
            raise TokenizerError(
                "the vocabulary is damaged: id 0 is the end of a document and has no byte string"
            )
        single = {data[self.offsets[i]] for i in np.flatnonzero(lengths == 1)}
        if len(single) < 256:
            missing = min(set(range(256)) - single)
            raise TokenizerError(f"the vocabulary is damaged: the byte 0x{missing:02x} has no entry")

    def __getitem__(self, token: int) -> bytes:
        """The byte string of a token, empty if it has none."""
        if not 0 <= token < len(self):
            return b""
        return self.data[self.offsets[token] : self.offsets[token + 1]]

    def __len__(self) -> int:
        """The highest id + 1."""
        return len(self.offsets) - 1

    def to_bytes(self) -> bytes:
        """The packaged form: number of ids (uint32, little endian), lengths (uint8 each), byte strings."""
        lengths = np.diff(self.offsets)
        if lengths.max() > 255:
            raise ValueError("a byte string is longer than 255 bytes")
        return len(self).to_bytes(4, "little") + lengths.astype(np.uint8).tobytes() + self.data

    @classmethod
    def from_bytes(cls, packed: bytes) -> WorldVocabulary:
        """The inverse of `to_bytes`. Raises TokenizerError for damaged data."""
        end = 4 + int.from_bytes(packed[:4], "little")
        if len(packed) < end:
            raise TokenizerError("the vocabulary is damaged: it is too short")
        return cls(np.frombuffer(packed[4:end], np.uint8), packed[end:])

    @classmethod
    def from_text(cls, text: bytes) -> WorldVocabulary:
        """Read the published text format; see `parse_vocabulary`. Raises TokenizerError for damaged data."""
        entries = parse_vocabulary(text)
        lengths = np.zeros(max(entries, default=0) + 1, np.int64)
        for token, string in entries.items():
            lengths[token] = len(string)
        return cls(lengths, b"".join(entries[token] for token in sorted(entries)))


def parse_vocabulary(text: bytes) -> dict[int, bytes]:
    """id -> byte string of a vocabulary in the format of `rwkv_vocab_v20230424.txt`.

    A line is `id literal length`: the literal is Python's of a string, which stands for its UTF-8, or of
    bytes; the length is in bytes. Raises TokenizerError naming the first line that is wrong.
    """
    entries: dict[int, bytes] = {}
    strings: set[bytes] = set()
    for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), 1):
        try:
            match = _ENTRY.fullmatch(line.decode("utf-8"))
            if match is None:
                raise ValueError("it is not of the form: id literal length")
            literal = ast.literal_eval(match[2])
            string = literal.encode("utf-8") if isinstance(literal, str) else literal
            token = int(match[1])
            if len(string) != int(match[3]):
                raise ValueError(f"it has {len(string)} bytes, not {match[3]}")
            if not string or token in entries or string in strings:
                raise ValueError("it is empty or occurs twice")
        except (ValueError, SyntaxError) as error:
            raise TokenizerError(f"the vocabulary is damaged in line {number}: {error}") from error
        entries[token] = string
        strings.add(string)
    return entries


class WorldTokenizer:
    """Greedy longest match over the byte strings of a World vocabulary."""

    name = "World"
    end_of_document = 0
    text_of_end = ""

    def __init__(self, spec: TokenizerSpec = TokenizerSpec("world")) -> None:
        """Read the vocabulary, the packaged one if the spec has none. Raises TokenizerError if damaged."""
        self.spec = spec
        if spec.data is None:
            packed = (resources.files("rwkv_cli") / "data" / "world_vocabulary.bin").read_bytes()
            self._vocabulary = WorldVocabulary.from_bytes(packed)
        else:
            self._vocabulary = WorldVocabulary.from_text(spec.data)

    def __repr__(self) -> str:
        return _described(self)

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary)

    @lazy_property
    def _trie(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The edges and tokens of `cpu_kernels.trie`."""
        from cpu_kernels.runtime.aot import kernel

        data, offsets = np.frombuffer(self._vocabulary.data, np.uint8), self._vocabulary.offsets
        edges, tokens = _empty_edges(len(data)), np.zeros(len(data) + 1, np.int32)
        n_nodes = kernel("trie.build")(edges, len(edges), tokens, data, offsets, len(self._vocabulary))
        packed = _empty_edges(n_nodes - 1)
        kernel("trie.pack")(packed, len(packed), edges, len(edges))
        return packed, tokens[:n_nodes].copy()

    def encode_bytes(self, data: bytes) -> NDArray[np.int32]:
        """The ids [T] of any bytes."""
        from cpu_kernels.runtime.aot import kernel

        (edges, tokens), text = self._trie, np.frombuffer(data, np.uint8)
        found = np.empty(len(text), np.int32)
        n_found = kernel("trie.longest_matches")(found, edges, len(edges), tokens, text, len(text))
        return found[:n_found]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.encode_bytes(_utf8(text)).tolist()
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self._vocabulary[token]

    def decode(self, tokens: Iterable[int]) -> str:
        return _decode(self, tokens)


def _empty_edges(n_edges: int) -> NDArray[np.int32]:
    """An empty hash table [S, 2] for `n_edges` edges of the trie, at a load factor of at most one half."""
    from cpu_kernels.abi import EMPTY

    return np.full((max(2, 1 << (2 * n_edges - 1).bit_length()), 2), EMPTY, np.int32)


# ------------------------------------------------------------------------------------------------------------
# tokenizer.json
# ------------------------------------------------------------------------------------------------------------

# A byte without a piece of its own, in a vocabulary with byte fallback.
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2, encoder.py, bytes_to_unicode).

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards in their order.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class JsonTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    The text of a special token in the input, such as `<|endoftext|>`, becomes that token: the library's
    default.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        """Read the file in spec.data. Raises TokenizerError for damaged data."""
        from tokenizers import Tokenizer as Library

        self.spec = spec
        with told("the tokenizer.json is damaged"):
            text = (spec.data or b"").decode("utf-8")
            description = json.loads(text)
            check(description)
            self._library = Library.from_str(text)
        # A file may ask for these, for training: a prompt has to stay as it is.
        self._library.no_truncation()
        self._library.no_padding()
        pieces = self._library.get_vocab(with_added_tokens=True)
        if not pieces:
            raise TokenizerError("the tokenizer.json is damaged: it has no entries")
        self._byte_level = _is_byte_level(description.get("decoder"))
        self._alphabet = _byte_alphabet()
        self._added = self._library.get_added_tokens_decoder()
        self.vocab_size: int = max(pieces.values()) + 1
        self.end_of_document: int = spec.ends[0] if spec.ends else pieces.get("<|endoftext|>", 0)
        end = self._added.get(self.end_of_document)
        self.text_of_end: str = str(end.content) if end else ""
        kind = "byte-level " if self._byte_level else ""
        self.name = f"{kind}{description['model'].get('type', 'model')} (tokenizer.json)"

    def __repr__(self) -> str:
        return _described(self)

    def encode(self, text: str) -> list[int]:
        readable = _utf8(text).decode("utf-8", "replace")
        with told("the tokenizer.json cannot encode this text"):
            ids: list[int] = self._library.encode(readable, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Special tokens mark structure and have no text; other added tokens have their own."""
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else str(added.content).encode("utf-8")
        piece: str | None = self._library.id_to_token(token) if 0 <= token < self.vocab_size else None
        if piece is None:
            return b""
        if self._byte_level and all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return piece.replace("▁", " ").encode("utf-8")  # U+2581, the space of SentencePiece

    def decode(self, tokens: Iterable[int]) -> str:
        return _decode(self, tokens)


def _is_byte_level(decoder: object) -> bool:
    """Whether the `decoder` entry of a tokenizer.json maps the byte alphabet back, alone or in a sequence."""
    if not isinstance(decoder, dict):
        return False
    inner = decoder.get("decoders")
    return decoder.get("type") == "ByteLevel" or (isinstance(inner, list) and any(map(_is_byte_level, inner)))


# ------------------------------------------------------------------------------------------------------------
# Bytes to text
# ------------------------------------------------------------------------------------------------------------


def _decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")


class StreamDecoder:
    """Decodes tokens as they arrive: a character is returned once its last byte is there.

    What `feed` and `flush` return, joined, is what the tokenizer's `decode` returns for all tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer, unfinished: bytes = b"") -> None:
        """`unfinished` are the first bytes of a character, which came before the tokens."""
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.decode(unfinished)

    def feed(self, token: int) -> str:
        """The text that this token completes; often empty where a character takes several tokens."""
        return self._utf8.decode(self._token_bytes(token))

    @property
    def unfinished(self) -> bytes:
        """The bytes that are held back: the first ones of a character."""
        return self._utf8.getstate()[0]

    def flush(self) -> str:
        """U+FFFD for bytes that were held back and stay incomplete; the decoder can be used again afterwards."""
        return self._utf8.decode(b"", final=True)
