"""Save where a text stands in one small file, and continue it from there in a freshly loaded model.

python examples/resume_state.py [MODEL]
"""

import sys
from pathlib import Path

from rwkv_cli import SavedState, load, state_file

FILE = Path("story.safetensors")

model = load(*sys.argv[1:])
story = model.generate("Once upon a time", template=None, seed=1, max_tokens=40)
print("Once upon a time" + "".join(step.text for step in story))
state_file.save(FILE, SavedState(story.commit(), state_file.identify(model)))

print(f"--- {FILE}: {FILE.stat().st_size:,} bytes ---")

# From here on, this could be another process, on another day.
model = load(*sys.argv[1:])
saved = state_file.load(FILE)
state_file.fit(saved, model)  # raises StateError for the state of another model
rest = model.generate("", template=None, start=saved.snapshot, max_tokens=40)
print("".join(step.text for step in rest))
