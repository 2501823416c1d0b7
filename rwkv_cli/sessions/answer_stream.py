"""An answer while it is generated: parts of a thought or of what is said after it, and then a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rwkv_cli.engine.generate import Usage
from rwkv_cli.generation import Generation
from rwkv_cli.text.thinking import Part


class AnswerStream(Iterator[Part]):
    """Parts of an answer, as they come. Once it has ended, the conversation has one more turn.

    It ends when the model ends it, at the limit of tokens, or after `stop`. An answer that is left unfinished, or that
    fails, leaves the conversation as it was.
    """

    def __init__(self, generation: Generation, done: Callable[[AnswerStream], None]) -> None:
        self.generation = generation
        self.text = ""  # all of it so far, thought and tags included
        self.thought_tokens = 0
        self.stopped = False
        self._done = done
        self._parts = self._run()

    def __next__(self) -> Part:
        return next(self._parts)

    def stop(self) -> None:
        """End after the current token; may be called from a signal handler."""
        self.stopped = True

    @property
    def finish(self) -> str:
        """Why it ended: that of the generation, or "stopped" by the user."""
        return self.generation.finish or ("stopped" if self.stopped else "length")

    @property
    def usage(self) -> Usage:
        """Counts and times."""
        return self.generation.usage

    def _run(self) -> Iterator[Part]:
        for step in self.generation:
            self.text += step.text
            self.thought_tokens += self.generation.is_in_thought
            yield from step.parts or [Part("")]  # one at least for each token: time passes
            if self.stopped:
                break
        if not self.generation.finish:
            rest = self.generation.rest()
            self.text += rest.text
            yield from rest.parts
        self._done(self)
