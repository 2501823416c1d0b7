"""Vocabularies, against a naive matcher and the libraries that they came with."""

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_cli.errors import TokenizerError, UsageError
from rwkv_cli.text.tokenizer import (
    JsonTokenizer,
    StreamDecoder,
    TokenizerSpec,
    WorldTokenizer,
    WorldVocabulary,
    load_tokenizer,
    parse_vocabulary,
)

WORLD = WorldTokenizer()
WORLD.encode("")  # compiles: later calls are quick
WORLD_STRINGS = {WORLD.token_bytes(token): token for token in range(1, WORLD.vocab_size)}
LONGEST = max(map(len, WORLD_STRINGS))
SINGLE_BYTES = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]

TEXTS = st.text() | st.lists(
    st.sampled_from(["the", " quick", "\n\n", "  ", "日本語", "é", "123", "🙂", "\t"])
).map("".join)
TOKENS = st.lists(st.integers(0, 65535))


def byte_level_json(merges: Sequence[tuple[str, str]] = (), added: Sequence[dict[str, object]] = ()) -> bytes:
    """A byte-level tokenizer.json: id 0 is <|endoftext|>, the bytes follow, then the merges."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<|endoftext|>", *alphabet, *("".join(merge) for merge in merges)]
    end = added_token(0, "<|endoftext|>", special=True)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges}
    document: dict[str, object] = {"version": "1.0", "truncation": None, "padding": None}
    document |= {"added_tokens": [end, *added]}
    document |= {"normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level}
    return json.dumps(document | {"model": model}).encode()


def added_token(token: int, content: str, *, special: bool) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": special, **flags}


BYTE_LEVEL = JsonTokenizer(
    TokenizerSpec("tokenizer.json", byte_level_json([("Ġ", "t"), ("h", "e"), ("Ġt", "he")]))
)


def naive_encode(data: bytes, strings: dict[bytes, int]) -> list[int]:
    """Greedy longest match, by trying every length."""
    tokens = []
    while data:
        length = next(n for n in range(LONGEST, 0, -1) if data[:n] in strings and n <= len(data))
        tokens.append(strings[data[:length]])
        data = data[length:]
    return tokens


# World


@given(TEXTS)
def test_world_encodes_like_the_naive_matcher(text: str) -> None:
    assert WORLD.encode(text) == naive_encode(text.encode(), WORLD_STRINGS)


@given(st.binary())
def test_world_round_trips_any_bytes(data: bytes) -> None:
    tokens = WORLD.encode_bytes(data)
    assert tokens.dtype == np.int32
    assert b"".join(map(WORLD.token_bytes, tokens.tolist())) == data
    assert tokens.tolist() == naive_encode(data, WORLD_STRINGS)


@given(TEXTS)
def test_world_round_trips_any_text(text: str) -> None:
    assert WORLD.decode(WORLD.encode(text)) == text


def test_every_world_entry_is_its_own_longest_match() -> None:
    assert all(WORLD.encode_bytes(string).tolist() == [token] for string, token in WORLD_STRINGS.items())


def test_world_vocabulary_is_the_published_one() -> None:
    assert WORLD.vocab_size == 65530
    assert WORLD.end_of_document == 0
    assert len(WORLD_STRINGS) == 65529
    assert WORLD.encode("Hello world") == [33155, 40213]  # as the published `rwkv` package has it
    assert WORLD.encode("\n\n") == [261]


@pytest.mark.parametrize("token", [0, 65530, 65535, 10**9, -1])
def test_ids_without_an_entry_have_no_bytes(token: int) -> None:
    assert WORLD.token_bytes(token) == b""
    assert BYTE_LEVEL.token_bytes(token) == b""


def test_bytes_of_the_command_line_survive_and_lone_surrogates_are_refused() -> None:
    assert WORLD.decode(WORLD.encode(b"caf\xe9".decode("utf-8", "surrogateescape"))) == "caf\ufffd"
    assert b"".join(map(WORLD.token_bytes, WORLD.encode("\udce9"))) == b"\xe9"
    for tokenizer in (WORLD, BYTE_LEVEL):
        with pytest.raises(UsageError, match="half a surrogate pair at position 1"):
            tokenizer.encode("a\ud800")


def test_published_world_encoder_agrees() -> None:
    published = pytest.importorskip("rwkv.rwkv_tokenizer")
    peer = published.TRIE_TOKENIZER(str(Path(published.__file__).parent / "rwkv_vocab_v20230424.txt"))
    for text in (
        "Once upon a time, ",
        "日本語とemoji 🙂\r\n\t  1234567",
        "def f(x):\n    return x ** 2\n\n\n",
    ):
        assert WORLD.encode(text) == peer.encode(text)


# Vocabularies in the text format


def custom(*lines: str) -> TokenizerSpec:
    return TokenizerSpec("world", "\n".join([*SINGLE_BYTES, *lines, ""]).encode())


@given(st.dictionaries(st.integers(257, 999), st.binary(min_size=2, max_size=5), max_size=20), st.binary())
def test_custom_vocabulary(entries: dict[int, bytes], data: bytes) -> None:
    strings = {string: token for token, string in sorted(entries.items(), reverse=True)}
    lines = [f"{token} {string!r} {len(string)}" for string, token in strings.items()]
    tokenizer = WorldTokenizer(custom(*lines))
    strings |= {bytes([byte]): byte + 1 for byte in range(256)}
    data += b"".join(entries.values())
    assert tokenizer.encode_bytes(data).tolist() == naive_encode(data, strings)


def test_text_and_packed_form_agree() -> None:
    text = b"1 'a' 1\r\n7 \"it's\" 4\r\n3 '\\u00e9\\n' 3\r\n4 b'\\xff\\x00' 2\r\n"
    assert parse_vocabulary(text) == {1: b"a", 7: b"it's", 3: b"\xc3\xa9\n", 4: b"\xff\x00"}
    vocabulary = WorldVocabulary.from_text(custom("300 'abc' 3").data or b"")
    again = WorldVocabulary.from_bytes(vocabulary.to_bytes())
    assert [again[token] for token in range(-1, 303)] == [vocabulary[token] for token in range(-1, 303)]
    assert again[300] == b"abc"
    assert len(again) == 301


@pytest.mark.parametrize(
    "line",
    [
        "", "1", "nonsense", "300 'ab' 3", "300 'ab'  2", "300 ab 2", "300 'ab' + 'c' 3", "300 '' 0",
        "1 'zz' 2", "300 'a' 1", "300 __import__('os') 1", "-1 'ab' 2", "99999999 'ab' 2", "300 '\\x4' 1",
        "300 '\\ud800' 3", "300 ('ab') 2", "300 'a\0' 2",
    ],
)  # fmt: skip
def test_damaged_line_is_named(line: str) -> None:
    with pytest.raises(TokenizerError, match="damaged in line 257"):
        WorldTokenizer(custom(line, "500 'abc' 3"))


@given(st.binary())
def test_any_bytes_are_a_vocabulary_or_an_error(data: bytes) -> None:
    for read in (WorldVocabulary.from_bytes, WorldVocabulary.from_text):
        with pytest.raises(TokenizerError):
            read(data)


def test_incomplete_vocabularies_are_refused() -> None:
    with pytest.raises(TokenizerError, match="the byte 0x41 has no entry"):
        WorldTokenizer(TokenizerSpec("world", "\n".join(SINGLE_BYTES[:65] + SINGLE_BYTES[66:]).encode()))
    with pytest.raises(TokenizerError, match="id 0 is the end of a document"):
        WorldTokenizer(custom("0 'ab' 2"))
    packed = WorldVocabulary.from_text(custom().data or b"").to_bytes()
    for damaged in (packed[:-1], packed[:100], packed + b"x", packed[:3]):
        with pytest.raises(TokenizerError, match="damaged"):
            WorldVocabulary.from_bytes(damaged)


# tokenizer.json


@given(TEXTS)
def test_byte_level_round_trip(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.decode(tokens) == text
    assert b"".join(map(BYTE_LEVEL.token_bytes, tokens)) == text.encode()


def test_byte_level_tokens() -> None:
    assert BYTE_LEVEL.vocab_size == 260
    assert BYTE_LEVEL.end_of_document == 0
    assert BYTE_LEVEL.name == "byte-level BPE (tokenizer.json)"
    assert list(map(BYTE_LEVEL.token_bytes, BYTE_LEVEL.encode("a the"))) == [b"a", b" the"]
    assert {BYTE_LEVEL.token_bytes(token) for token in range(1, 257)} == {
        bytes([byte]) for byte in range(256)
    }


def test_special_tokens_have_no_text_and_added_ones_do() -> None:
    added = [added_token(257, "«two  spaces»", special=False), added_token(258, "<|mark|>", special=True)]
    tokenizer = JsonTokenizer(TokenizerSpec("tokenizer.json", byte_level_json(added=added)))
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("<|mark|>«two  spaces»<|endoftext|>") == [258, 257, 0]
    assert tokenizer.decode([258, 257, 0]) == "«two  spaces»"


def test_nothing_is_added_or_cut_as_a_file_may_ask() -> None:
    document = json.loads(byte_level_json())
    piece = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    end = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    pair = [*piece, {"Sequence": {"id": "B", "type_id": 1}}]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": piece,
        "pair": pair,
        "special_tokens": end,
    }
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    pad: dict[str, object] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    document |= {"truncation": cut, "padding": pad}
    tokenizer = JsonTokenizer(TokenizerSpec("tokenizer.json", json.dumps(document).encode()))
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    assert len(tokenizer.encode("hi")) == 2


def test_pieces_that_are_not_byte_level() -> None:
    document = json.loads(byte_level_json())
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    document |= {"added_tokens": [], "pre_tokenizer": space, "decoder": space}
    vocab = {"a": 0, "▁": 1, "▁a": 2, "<0xC3>": 3, "<0xA9>": 4}
    document["model"] = {"type": "BPE", "vocab": vocab, "merges": [("▁", "a")], "byte_fallback": True}
    tokenizer = JsonTokenizer(TokenizerSpec("tokenizer.json", json.dumps(document).encode()))
    assert tokenizer.decode(tokenizer.encode("a aé")) == "a aé"
    assert tokenizer.name == "BPE (tokenizer.json)"


@pytest.mark.parametrize("data", [None, b"", b"{}", b"[]", b"\xff\xfe", b"nonsense", byte_level_json()[:-20]])
def test_damaged_tokenizer_json(data: bytes | None) -> None:
    with pytest.raises(TokenizerError, match=r"the tokenizer.json is damaged"):
        load_tokenizer(TokenizerSpec("tokenizer.json", data), 65536)


def own_json(model: dict[str, object], **parts: object) -> TokenizerSpec:
    """A tokenizer.json of three pieces, a, b and ab."""
    bare = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    document = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    document |= {"post_processor": None, "decoder": None, "model": bare | model}
    return TokenizerSpec("tokenizer.json", json.dumps(document | parts).encode())


def table_of_characters(data: bytes) -> dict[str, object]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("model", "parts", "said"),
    [
        ({"continuing_subword_prefix": "1" * 60}, {}, "'b' is merged as the rest of a word"),
        (
            {"continuing_subword_prefix": "b", "merges": ["a b", "b a"]},
            {},
            "'a' is merged as the rest of a word",
        ),
        # These three end the process, or take all memory, where the library is left to itself.
        (
            {"continuing_subword_prefix": "1", "vocab": {"a": 0, "é": 1}, "merges": [["a", "é"]]},
            {},
            "'é' is merged as the rest of a word",
        ),
        ({}, {"normalizer": table_of_characters(b"\xff\xff\xff\xff")}, "table of characters is shorter"),
        (
            {},
            {"normalizer": {"type": "Sequence", "normalizers": [table_of_characters(b"\0\0\0\x40abcd")]}},
            "table of characters is shorter",
        ),
        ({}, {"normalizer": table_of_characters(b"")}, ""),  # a panic
        ({"dropout": 5}, {}, "Dropout should be between 0 and 1"),
        ({"merges": [["a", "c"]]}, {}, "out of vocabulary"),
        ({"merges": [["a"]], "continuing_subword_prefix": "b"}, {}, ""),
    ],
)
def test_what_the_library_cannot_bear(model: dict[str, object], parts: dict[str, object], said: str) -> None:
    with pytest.raises(TokenizerError, match=r"^the tokenizer.json is damaged: ") as raised:
        JsonTokenizer(own_json(model, **parts))
    assert said in str(raised.value)


def test_a_prefix_of_the_rest_of_words() -> None:
    vocab = {"a": 0, "##b": 1, "ab": 2}
    model = {"continuing_subword_prefix": "##", "vocab": vocab, "merges": [["a", "##b"]]}
    assert JsonTokenizer(own_json(model)).encode("ab") == [2]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"unk_token": "?"}, {}),
        ({"type": "WordLevel", "unk_token": "?"}, {}),
        (
            {
                "type": "WordPiece",
                "unk_token": "?",
                "continuing_subword_prefix": "a",
                "max_input_chars_per_word": 9,
                "merges": [],
            },
            {},
        ),
        ({}, {"pre_tokenizer": {"type": "FixedLength", "length": 0}}),  # a panic
        ({}, {"normalizer": table_of_characters(b"\4\0\0\0\xff\xff\xff\x7f")}),  # another
    ],
)
def test_a_text_that_the_library_cannot_encode(model: dict[str, object], parts: dict[str, object]) -> None:
    tokenizer = JsonTokenizer(own_json(model, **parts))
    with pytest.raises(TokenizerError, match=r"^the tokenizer.json cannot encode this text: "):
        tokenizer.encode("xyz")


@pytest.mark.parametrize("decoders", [None, 5, [], [5], "ByteLevel"])
def test_an_odd_decoder_is_none_of_bytes(decoders: object) -> None:
    tokenizer = JsonTokenizer(own_json({}, decoder={"type": "Fuse", "decoders": decoders}))
    assert tokenizer.name == "BPE (tokenizer.json)"


def test_an_interrupt_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", interrupted, raising=True)
    with pytest.raises(KeyboardInterrupt):
        JsonTokenizer(own_json({}))


def test_tokenizer_json_without_entries() -> None:
    document = json.loads(byte_level_json())
    document["added_tokens"] = []
    document["model"] |= {"vocab": {}, "merges": []}
    with pytest.raises(TokenizerError, match="it has no entries"):
        JsonTokenizer(TokenizerSpec("tokenizer.json", json.dumps(document).encode()))


# Both


def test_tokenizer_and_model_have_to_fit() -> None:
    assert load_tokenizer(TokenizerSpec("world"), 65536).name == "World"
    assert load_tokenizer(BYTE_LEVEL.spec, 260).vocab_size == 260
    with pytest.raises(
        TokenizerError, match="the tokenizer has 65,530 entries, the model 8,192: they do not"
    ):
        load_tokenizer(TokenizerSpec("world"), 8192)
    with pytest.raises(TokenizerError, match="only 'world' and"):
        load_tokenizer(TokenizerSpec("bpe"), 8192)  # type: ignore[arg-type]


@settings(max_examples=300)
@given(TOKENS | TEXTS.map(WORLD.encode))
def test_stream_decoder_loses_nothing(tokens: list[int]) -> None:
    for tokenizer in (WORLD, BYTE_LEVEL):
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.feed, tokens)) + decoder.flush() == tokenizer.decode(tokens)


@given(TEXTS)
def test_stream_decoder_gives_whole_characters(text: str) -> None:
    decoder = StreamDecoder(BYTE_LEVEL)
    shown = ""
    for token in BYTE_LEVEL.encode(text):
        shown += decoder.feed(token)
        assert text.startswith(shown)
    assert shown == text
    assert decoder.flush() == ""


def test_stream_decoder_holds_half_a_character_back() -> None:
    decoder = StreamDecoder(WORLD)
    first, second = (byte + 1 for byte in "é".encode())  # a single byte has the id that follows it
    assert (decoder.feed(first), decoder.feed(second)) == ("", "é")
    assert (decoder.feed(first), decoder.flush(), decoder.flush()) == ("", "\ufffd", "")
    assert decoder.feed(35) == '"'


def test_import_and_loading_are_lazy() -> None:
    code = (
        "import sys; from rwkv_cli.text.tokenizer import WorldTokenizer; WorldTokenizer().decode([33155]);"
        "sys.exit(any(name in sys.modules for name in ('numba', 'tokenizers', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
