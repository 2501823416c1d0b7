"""The class that lm-eval asks: its requests, answered by the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from rwkv_cli.engine.backends.base import Backend
from rwkv_cli.engine.generate import Ending
from rwkv_cli.errors import UsageError
from rwkv_cli.evaluation.harness.answers import Prompt, answer_all
from rwkv_cli.evaluation.harness.finished import Finished, key_of
from rwkv_cli.evaluation.harness.log_likelihoods import Continuation, Score, score_all
from rwkv_cli.reporting import Progress
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.template import Template
from rwkv_cli.text.thinking import ThoughtSplitter
from rwkv_cli.text.tokenizer import Tokenizer

MAX_TOKENS = 256
"""Of an answer, where neither the task nor the user says: as for lm-eval's `hf`."""

LEADING = frozenset({"mmlu_rwkv"})
"""Tasks whose recipe begins with the token that ends a document."""

_LIMITS = "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"

R = TypeVar("R")

Counting = Callable[[str, int], AbstractContextManager[Progress | None]]
"""Shows how many of a number of things are done: entered with what they are, it gives what is called for each."""


@dataclass(frozen=True)
class Subject:
    """A model, and how it is asked."""

    backend: Backend
    tokenizer: Tokenizer
    template: Template  # of a conversation, or one that adds nothing
    think: str | None = None  # a mode of it
    leading: bool = False  # whether texts begin with the token that ends a document
    stop_tokens: Collection[int] = ()
    max_tokens: int | None = None  # of each answer, over what a task says; -1 for no limit
    slots: int | None = None  # texts that are read together


class LanguageModel(TemplateLM):
    """What lm-eval calls. Results are kept, and found again, in `finished`."""

    def __init__(self, subject: Subject, finished: Finished, counting: Counting) -> None:
        super().__init__()
        self._subject, self._finished, self._counting = subject, finished, counting

    # --- what the base class wants ----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document; also what an empty context is replaced with."""
        return self._subject.tokenizer.end_of_document

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[int]:
        """The tokens of a text; nothing is added."""
        return self._subject.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        raise NotImplementedError  # `loglikelihood` does not need it

    @property
    def tokenizer_name(self) -> str:
        """What the requests that lm-eval may cache depend on."""
        return f"rwkv {self._subject.template.name} {self._subject.think}"

    def chat_template(self, chat_template: bool | str = False) -> str:  # noqa: ARG002
        """The name of the template."""
        return self._subject.template.name

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,  # noqa: ARG002  # the last message is whoever has to go on
    ) -> str:
        """The text of a conversation up to the next answer, or to the end of one that was begun."""
        return conversation_text(self._subject.template, chat_history, self._subject.think)

    # --- requests ---------------------------------------------------------------------------------------------------

    def loglikelihood(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether it is the greedy one."""
        self._check_no_thought()
        return [*self._scored("comparing answers", requests, self._continuation)]

    def loglikelihood_rolling(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[float]:
        """ln p of each whole text after the end of a document: read in one go, however long it is."""

        def whole(request: Instance) -> Continuation:
            return Continuation([self.eot_token_id], self.tok_encode(request.args[0]))

        return [score.log_likelihood for score in self._scored("reading texts", requests, whole)]

    def generate_until(
        self,
        requests: Sequence[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[str]:
        """The answer to each prompt, without a thought."""
        template, think = self._subject.template, self._subject.think

        def answer(prompts: Sequence[Prompt], done: Callable[[int, str], Any]) -> None:
            answer_all(
                self._subject.backend,
                self._subject.tokenizer,
                prompts,
                lambda: ThoughtSplitter(template, think, trims=template.is_chat),
                done,
                self._subject.slots,
            )

        return self._answered("answering", requests, self._prompt, answer, str)

    def _scored(
        self, task: str, requests: Sequence[Instance], understood: Callable[[Instance], Continuation]
    ) -> list[Score]:
        backend, slots = self._subject.backend, self._subject.slots
        return self._answered(
            task,
            requests,
            lambda request, _: understood(request),
            lambda asked, done: score_all(backend, asked, done, slots),
            lambda kept: Score(float(kept[0]), bool(kept[1])),
        )

    def _answered(
        self,
        task: str,
        requests: Sequence[Instance],
        understood: Callable[[Instance, str], Any],
        run: Callable[[list[Any], Callable[[int, Any], None]], None],
        restored: Callable[[Any], R],
    ) -> list[R]:
        """The results of requests, in their order: those that are kept, and new ones, which `run` gives as they come.

        `understood` gets a request and the key of its result.
        """
        keys = self._keys(requests)
        missing = [i for i, key in enumerate(keys) if self._finished.get(key) is None]
        asked = [understood(requests[i], keys[i]) for i in missing]
        with self._counting(task, len(requests)) as progress:
            if progress:
                progress(len(requests) - len(missing))

            def done(j: int, result: Any) -> None:
                self._finished.keep(keys[missing[j]], result)
                if progress:
                    progress(1)

            run(asked, done)
        return [restored(self._finished.get(key)) for key in keys]

    def _keys(self, requests: Sequence[Instance]) -> list[str]:
        """What each result is kept under. The same request may come again: samples differ."""
        subject, seen, keys = self._subject, dict[str, int](), []
        how = [subject.template.name, subject.think, subject.leading, subject.max_tokens]
        for request in requests:
            key = key_of(request.task_name, request.request_type, request.args, how)
            seen[key] = seen.get(key, 0) + 1
            keys.append(key_of(key, seen[key]))
        return keys

    def _leads(self, request: Instance) -> bool:
        return self._subject.leading or request.task_name in LEADING

    def _continuation(self, request: Instance) -> Continuation:
        context, continuation = request.args
        if not context:
            return Continuation([self.eot_token_id], self.tok_encode(continuation))
        read, follows = self._encode_pair(context, continuation)
        if not follows:  # one token has the end of one and all of the other
            read, follows = self.tok_encode(context), self.tok_encode(continuation)
        return Continuation(self._begun(read, request), follows)

    def _begun(self, tokens: list[int], request: Instance) -> list[int]:
        return [self.eot_token_id, *tokens] if self._leads(request) else tokens

    def _prompt(self, request: Instance, key: str) -> Prompt:
        text, options = request.args
        until = options.get("until") or []
        subject, template = self._subject, self._subject.template
        named = [options[name] for name in _LIMITS if options.get(name) is not None]
        limit = int(named[0] if named else MAX_TOKENS) if subject.max_tokens is None else subject.max_tokens
        ending = Ending(self.eot_token_id, subject.stop_tokens if template.is_chat else (), limit)
        stops = [*([until] if isinstance(until, str) else until), *template.stop]
        tokens = self._begun(self.tok_encode(text), request) or [self.eot_token_id]
        return Prompt(tokens, _settings(options, key), ending, [stop for stop in stops if stop])

    def _check_no_thought(self) -> None:
        if ThoughtSplitter(self._subject.template, self._subject.think).is_in_thought:
            raise UsageError(
                "{think}: tasks that compare given answers leave no room for a thought; choose a mode without one, "
                "such as {think=off}"
            )


def _settings(options: Mapping[str, Any], key: str) -> SamplingSettings:
    """How to choose tokens: greedily, unless a task asks for samples; each has a seed of its own."""
    if options.get("do_sample") is False or not options.get("temperature"):
        return SamplingSettings(temperature=0)
    chosen = {
        name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name) is not None
    }
    return SamplingSettings(**chosen, seed=int(key[:8], 16))


def conversation_text(template: Template, messages: Sequence[Mapping[str, str]], think: str | None) -> str:
    """The text of messages with the roles "system", "user" and "assistant".

    It ends where the next answer begins or with the last message, if that is an answer: the model is to continue it.
    Raises UsageError for a system text that the template has no place for.
    """
    space = " " if template.answer.endswith(":") else ""
    text, system = "", None
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "system":
            system = content
        elif role == "assistant":
            text += space + content
        else:
            is_last = i == len(messages) - 1
            mode = think if is_last else None
            text += template.continuation(content, mode) if text else template.render(content, system, mode)
            if not is_last:  # no thought of theirs is known
                text = text.removesuffix(template.answer_prefix())
    return text
