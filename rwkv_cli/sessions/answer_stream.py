"""An answer while it is generated: tokens become parts of a thought or of what is said after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rwkv_cli.engine.generate import Usage
from rwkv_cli.generation import Generation
from rwkv_cli.text.thinking import Part, ThoughtSplitter


class AnswerStream(Iterator[Part]):
    """Parts of an answer, as they come. Once it has ended, the conversation has one more turn.

    It ends when the model ends it, at the limit of tokens, or after `stop`. An answer that is left unfinished, or that
    fails, leaves the conversation as it was.
    """

    def __init__(
        self, generation: Generation, splitter: ThoughtSplitter, done: Callable[[AnswerStream], None]
    ) -> None:
        self.generation = generation
        self.text = ""  # all of it so far, thought and tags included
        self.thought_tokens = 0
        self.stopped = False
        self._splitter = splitter
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
            parts = self._take(step.text)
            self.thought_tokens += self._splitter.is_in_thought
            yield from parts or [Part("")]  # one at least for each token: time passes
            if self.stopped:
                break
        if not self.generation.is_inside_character:  # which `commit` takes back
            yield from self._take(self.generation.flush())
        yield from self._splitter.flush()
        self._done(self)

    def _take(self, text: str) -> list[Part]:
        self.text += text
        return self._splitter.feed(text)
