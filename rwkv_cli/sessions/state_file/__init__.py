"""State files: a saved position in a text, from which a model continues; docs/state-file.md describes the format.

saved_state   what a file holds, written and read as a whole
fields        its parts: encoding, and decoding with every check
state_tuned   states that state tuning has trained, which are published as .pth files
"""

from rwkv_cli.sessions.model_identity import ModelIdentity, identify
from rwkv_cli.sessions.state_file.saved_state import (
    SavedState,
    Summary,
    fit,
    is_state_file,
    load,
    peek,
    save,
)

__all__ = [
    "ModelIdentity",
    "SavedState",
    "Summary",
    "fit",
    "identify",
    "is_state_file",
    "load",
    "peek",
    "save",
]
