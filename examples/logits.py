"""The most likely next tokens of a prompt, with their probabilities.

python examples/logits.py [MODEL]
"""

import sys

import numpy as np

from rwkv_cli import load

PROMPT = "The little girl was very"

model = load(*sys.argv[1:])
logits, state = model.forward(model.encode_prompt(PROMPT, model.template))

probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()

for token in probabilities.argsort()[:-6:-1].tolist():
    print(f"{probabilities[token]:6.1%}  {PROMPT}{model.tokenizer.decode([token])}")
