"""The constraint that follows a grammar, after the thought that a model may have first."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Self

import numpy as np

from rwkv_cli.engine.constraint import GAP, ConstraintMemory, Mask, allowed_tokens, mask_of
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.engine.constraints.vocabulary import TAG, WHITE, Vocabulary
from rwkv_cli.errors import StateError, UsageError
from rwkv_cli.text.thinking import CLOSE, OPEN


def following(grammar: Grammar, vocabulary: Vocabulary, begun: str | None = None) -> GrammarConstraint:
    """The constraint of an answer. `begun` is how the template began it, perhaps with a tag; None for a plain text.

    Raises UsageError for a grammar that cannot be followed.
    """
    if begun is None:
        return GrammarConstraint(grammar, vocabulary)
    gap = "" if begins_with_white(grammar, vocabulary) else GAP
    opened, closed = begun.rfind(OPEN[:-1]), begun.rfind(CLOSE[:-1])
    if opened > closed:
        return GrammarConstraint(grammar, vocabulary, gap, begun.encode())
    return GrammarConstraint(grammar, vocabulary, ">" + gap if begun.endswith(CLOSE[:-1]) else gap)


def begins_with_white(grammar: Grammar, vocabulary: Vocabulary) -> bool:
    """Whether a text of the grammar may begin with white space, so that there must be no other before it."""
    if grammar.kind == "json_schema":
        return False
    matcher = grammar.matcher(vocabulary.library)
    white = (vocabulary.library.tokenize_bytes(character) for character in (b" ", b"\n", b"\t", b"\r"))
    return any(matcher.validate_tokens(tokens) == len(tokens) for tokens in white)


class GrammarConstraint:
    """See `engine.constraint.Constraint`. While the model thinks, it may say anything but the end."""

    def __init__(
        self, grammar: Grammar, vocabulary: Vocabulary, lead: str = "", thought: bytes | None = None
    ) -> None:
        """`lead` is one of LEADS. `thought` is where a thought comes first:
        the end of what is in it already.

        Raises UsageError for a grammar that cannot be followed.
        """
        self._grammar, self._vocabulary, self._lead = grammar, vocabulary, lead
        self._begun = None if thought is None else thought[1 - len(TAG) :]
        self._thought = self._begun  # its last bytes; None once it is over
        self._tokens: list[int] = []
        self._matched = 0  # tokens that the matcher has accepted
        self._matcher = grammar.matcher(vocabulary.library, lead)
        self._mask: Mask | None = None  # of the next token, if it was computed
        if not self._matched_mask().any():
            raise grammar.error("nothing satisfies it")

    @classmethod
    def restored(cls, memory: ConstraintMemory, vocabulary: Vocabulary) -> Self:
        """The inverse of `save`. Raises StateError for what was never saved."""
        try:
            self = cls(Grammar(memory.kind, memory.source), vocabulary, memory.lead, memory.thought)
            for token in memory.tokens:
                self.accept(token)
        except (UsageError, IndexError, OverflowError, ValueError):
            raise StateError(
                "the state is damaged: what was generated does not follow its constraint"
            ) from None
        return self

    def save(self) -> ConstraintMemory:
        """See `Constraint`."""
        grammar, ends = self._grammar, self._vocabulary.ends
        return ConstraintMemory(
            grammar.kind, grammar.source, ends, self._lead, self._begun, tuple(self._tokens)
        )

    def copy(self) -> Self:
        """See `Constraint`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._tokens, other._matcher = self._tokens.copy(), self._matcher.deep_copy()
        return other

    @property
    def is_complete(self) -> bool:
        """See `Constraint`."""
        if self._thought is not None or not self._matcher.is_accepting():
            return False
        return self._matcher.is_stopped() or not self._some()

    def mask(self) -> Mask:
        """See `Constraint`."""
        if self._mask is None:
            self._mask = self._matched_mask() if self._thought is None else self._thinking_mask(self._thought)
        return self._mask

    def _matched_mask(self) -> Mask:
        mask = np.zeros((self._vocabulary.size + 31) // 32, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise self._grammar.error(self._matcher.get_error())
        return mask

    def _thinking_mask(self, thought: bytes) -> Mask:
        """The tokens of thoughts, without those that end this one and begin the answer in one go."""
        mask = self._vocabulary.thinking
        crossing = [tokens for n, tokens in self._vocabulary.closing.items() if thought.endswith(TAG[:n])]
        return mask & ~mask_of(np.concatenate(crossing), self._vocabulary.size) if crossing else mask

    def accept(self, token: int) -> None:
        """See `Constraint`."""
        if self._thought is None:
            if not self._matcher.validate_tokens([token]):
                raise UsageError(f"token {token} does not follow the constraint")
            self._matcher.consume_token(token)
            self._matched += 1
        else:
            text = self._thought + self._vocabulary.tokens[token]
            _, closed, rest = text.partition(TAG)
            if rest.strip(WHITE):
                raise UsageError(f"token {token} does not follow the constraint")
            self._thought = None if closed else text[1 - len(TAG) :]
        self._tokens.append(token)
        self._mask = None

    def rollback(self, n: int) -> None:
        """See `Constraint`."""
        kept = self._tokens[: len(self._tokens) - n]
        if n <= self._matched and self._matcher.rollback(n):
            self._matched -= n
            self._tokens, self._mask = kept, None
        else:  # into the thought
            again = self.restored(replace(self.save(), tokens=tuple(kept)), self._vocabulary)
            self.__dict__.update(again.__dict__)

    def forced(self) -> list[int]:
        """See `Constraint`: text that has to follow, in the tokens of the tokenizer, or the only token that may."""
        if self._thought is not None or self._matcher.is_stopped():
            return []
        found = list(itertools.takewhile(self._has_text, self._matcher.compute_ff_tokens()))
        if found:
            return found[: self._matcher.validate_tokens(found)]
        some = [] if self._matcher.is_accepting() else self._some()
        return some if len(some) == 1 else []

    def _some(self) -> list[int]:
        """Tokens that may come next and do not end the text: if they are not all, then at least two."""
        most = len(self._vocabulary.ends) + 2
        mask = self.mask()
        words = np.flatnonzero(mask)[:most]  # each of which has one token at least
        few = np.zeros_like(mask)
        few[words] = mask[words]
        return [*filter(self._has_text, allowed_tokens(few, self._vocabulary.size).tolist())]

    def _has_text(self, token: int) -> bool:
        return token not in self._vocabulary.ends
