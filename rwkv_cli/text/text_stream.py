"""Decodes tokens as they arrive: whole characters, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_cli.errors import UsageError
from rwkv_cli.text.stop_strings import StopFilter
from rwkv_cli.text.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """The text of one answer. Without a tokenizer, all text is empty."""

    def __init__(
        self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), unfinished: bytes = b""
    ) -> None:
        """`unfinished` are the bytes of a character that the text before this one ended in the middle of.

        Raises UsageError for stop strings without a tokenizer, and for an empty one.
        """
        if stop and not tokenizer:
            raise UsageError("stop strings need a tokenizer, which this model does not have")
        self._decoder = StreamDecoder(tokenizer, unfinished) if tokenizer else None
        self._filter = StopFilter(stop)

    def feed(self, token: int) -> str:
        """The text that can be shown now; empty while half a character or a possible stop string is held back."""
        return self._filter.feed(self._decoder.feed(token)) if self._decoder else ""

    def flush(self) -> str:
        """The text held back so far, at the end of the tokens; empty after a stop string."""
        if self._decoder is None or self.is_stopped:
            return ""
        return self._filter.feed(self._decoder.flush()) + self._filter.flush()

    def rest(self) -> str:
        """The text held back so far, where the tokens end at a limit: without half a character, which is kept."""
        return "" if self.is_stopped else self._filter.flush()

    @property
    def unfinished(self) -> bytes:
        """The bytes so far of a character that the tokens end in the middle of."""
        return b"" if self._decoder is None or self.is_stopped else self._decoder.unfinished

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._filter.stopped is not None

    @property
    def is_inside_character(self) -> bool:
        """Whether the tokens so far end in the middle of a character."""
        return self._decoder is not None and bool(self._decoder.unfinished)

    @property
    def is_holding(self) -> bool:
        """Whether some text of the tokens so far was held back or cut off."""
        return bool(self.is_stopped or self._filter.held or self.is_inside_character)
