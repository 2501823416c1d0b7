"""A chat in the terminal; Ctrl-D ends it.

python examples/chat.py [MODEL]
"""

import sys

from rwkv_cli import Conversation, load

model = load(*sys.argv[1:])  # a file or a name; without one, the built-in model
conversation = Conversation(model)

print("> ", end="", flush=True)
for message in sys.stdin:
    if message.strip():
        for part in conversation.ask(message):
            print(part.text, end="", flush=True)
    print("\n> ", end="", flush=True)
