"""An answer while it comes: tokens become parts of a thought or of what is said after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rwkv_cli.engine.generate import Generation, Usage
from rwkv_cli.text.thinking import Part, ThoughtSplitter


class Answer(Iterator[Part]):
    """Parts of an answer, as they come. Once it has ended, the conversation has a turn more.

    It ends with the model's last word, at the limit of tokens, or after `stop`. Whoever leaves it unfinished, or meets
    an exception, has a conversation in which nothing was said.
    """

    def __init__(
        self, generation: Generation, splitter: ThoughtSplitter, done: Callable[[Answer], None]
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
        """End after the present token; may be called from a signal handler."""
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
        if not self.generation.is_inside_character:  # which `settle` takes back
            yield from self._take(self.generation.flush())
        yield from self._splitter.flush()
        self._done(self)

    def _take(self, text: str) -> list[Part]:
        self.text += text
        return self._splitter.feed(text)
