"""Answer several prompts: all at once on a GPU, one after another on a CPU.

python examples/batch.py [MODEL]
"""

import sys

from rwkv_cli import Prompt, answers, load

model = load(*sys.argv[1:])
prompts = [Prompt(text) for text in ("The cat", "One rainy day", "Tom found a key")]

for answer in answers(model, prompts, seed=1, max_tokens=30):  # in the order in which they are finished
    print(f"{answer.index + 1}. {prompts[answer.index].text}{answer.text}")
