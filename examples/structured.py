"""Have a model fill in a form: JSON that is valid under a schema, whatever the model.

python examples/structured.py [MODEL]
"""

import json
import sys

from rwkv_cli import Grammar, load

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "animal": {"enum": ["fox", "goose", "mouse"]},
        "friends": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "animal", "friends"],
    "additionalProperties": False,
}

model = load(*sys.argv[1:])
generation = model.generate("The hero of this story: ", constraint=Grammar.json_schema(SCHEMA), seed=1)
hero = json.loads(generation.text)
print(f"{hero['name']} is a {hero['animal']} with {hero['friends']} friends")
