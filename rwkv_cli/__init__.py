"""Run RWKV-7 language models: `rwkv_cli.load()` gives a `Model`.

>>> import rwkv_cli
>>> model = rwkv_cli.load()
>>> for step in model.generate("Once upon a time", template="story", seed=1, max_tokens=20):
...     print(step.text, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkv_cli.catalog.pull import pull
    from rwkv_cli.catalog.quantize import quantize
    from rwkv_cli.engine.constraints.grammar import Grammar
    from rwkv_cli.engine.session import Session, Snapshot
    from rwkv_cli.engine.state import State
    from rwkv_cli.errors import RwkvError
    from rwkv_cli.generation import Generation, Step
    from rwkv_cli.model import Model, load, perplexity
    from rwkv_cli.sampling_settings import SamplingSettings
    from rwkv_cli.sessions import state_file
    from rwkv_cli.sessions.batch import Answer, Prompt, answers, batch
    from rwkv_cli.sessions.conversation import Conversation
    from rwkv_cli.sessions.state_file import SavedState

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Conversation",
    "Generation",
    "Grammar",
    "Model",
    "Prompt",
    "RwkvError",
    "SamplingSettings",
    "SavedState",
    "Session",
    "Snapshot",
    "State",
    "Step",
    "__version__",
    "answers",
    "batch",
    "load",
    "perplexity",
    "pull",
    "quantize",
    "state_file",
]

_HOMES = {
    "Answer": "sessions.batch",
    "Conversation": "sessions.conversation",
    "Generation": "generation",
    "Grammar": "engine.constraints.grammar",
    "Model": "model",
    "Prompt": "sessions.batch",
    "RwkvError": "errors",
    "SamplingSettings": "sampling_settings",
    "SavedState": "sessions.state_file",
    "Session": "engine.session",
    "Snapshot": "engine.session",
    "State": "engine.state",
    "Step": "generation",
    "answers": "sessions.batch",
    "batch": "sessions.batch",
    "load": "model",
    "perplexity": "model",
    "pull": "catalog.pull",
    "quantize": "catalog.quantize",
    "state_file": "sessions",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `rwkv --help` needs none of this."""
    if name in _HOMES:
        return getattr(import_module(f"rwkv_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a person who presses Tab is looking for."""
    return __all__
