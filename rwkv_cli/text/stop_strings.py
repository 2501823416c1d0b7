"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from rwkv_cli.errors import UsageError


def parse_stops(stops: Iterable[str]) -> tuple[str, ...]:
    """Stop strings, all of them usable. Raises UsageError for an empty one, which would stop everything."""
    parsed = tuple(stops)
    if not all(parsed):
        raise UsageError("a stop string is empty: {stop} must have at least one character")
    return parsed


class StopFilter:
    """Passes text through up to the first stop string, and holds back only what may still become one.

    The first stop string is the one that is complete first; of those that end at the same character, the
    longest. How the text is split into pieces makes no difference. The time is linear in the text: each stop
    string is tracked by the automaton of Knuth, Morris and Pratt (SIAM J. Comput. 6, 1977).
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Raises UsageError for an empty stop string, which would stop everything."""
        self.stopped: str | None = None  # the stop string that was found
        self._automata = [_Automaton(stop) for stop in sorted(set(parse_stops(stops)), key=len, reverse=True)]
        self.held = ""  # may still become a stop string

    def feed(self, text: str) -> str:
        """The text that can be shown now; nothing of a stop string or after it."""
        if self.stopped is not None:
            return ""
        pending = self.held + text
        for position in range(len(self.held), len(pending)):
            # Not a generator: every automaton has to see every character.
            complete = [automaton.advance(pending[position]) for automaton in self._automata]
            if True in complete:
                self.stopped = self._automata[complete.index(True)].stop
                self.held = ""
                return pending[: position + 1 - len(self.stopped)]
        n_held = max((automaton.matched for automaton in self._automata), default=0)
        self.held = pending[len(pending) - n_held :]
        return pending[: len(pending) - n_held]

    def flush(self) -> str:
        """The text held back, at the end of the text: empty after a stop string."""
        held, self.held = self.held, ""
        for automaton in self._automata:
            automaton.matched = 0  # consistent with what is held, in case more text follows after all
        return held


class _Automaton:
    """Tracks one string in a text: its first `matched` characters are the end of the text so far."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        # borders[n]: the longest proper prefix of stop[:n + 1] that is also its suffix.
        self._borders = [0] * len(stop)
        length = 0
        for n in range(1, len(stop)):
            while length and stop[n] != stop[length]:
                length = self._borders[length - 1]
            length += stop[n] == stop[length]
            self._borders[n] = length

    def advance(self, character: str) -> bool:
        """Take the next character of the text; True if the string is complete with it."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._borders[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)
