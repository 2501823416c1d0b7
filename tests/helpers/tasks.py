"""Tasks of lm-eval that need no network: a file of each, and a file of examples."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = (
    "Once upon a time there was a little girl",
    "The dog ran home to his mother",
    "He was very happy and they played all day",
    "Tom and Lily went to the park to play with the ball",
)

LAST_WORD = """
task: last_word
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""

CHOICE = """
task: choice
output_type: multiple_choice
fewshot_split: test
num_fewshot: 2
doc_to_text: "Question: {{text}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C"]
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""

SENTENCE = """
task: sentence
output_type: multiple_choice
doc_to_text: "{{text}}."
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""

WHOLE = """
task: whole
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""

WRITE = """
task: write
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: [".", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def write_tasks(folder: Path) -> Path:
    """Files of the tasks last_word, choice, sentence, whole and write, and their examples."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = folder / "examples.jsonl"
    with examples.open("w") as file:
        for i in range(12):
            choices = [f"They were {word}" for word in ("happy", "sad and tired", "in the big house")]
            text = TEXTS[i % len(TEXTS)] + " again" * (i // len(TEXTS))
            file.write(json.dumps({"text": text, "choices": choices, "answer": i % 3}) + "\n")
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {json.dumps(str(examples))}}}}}\n"
        "test_split: test\nmetadata: {version: 1.0}\n"
    )
    for text in (LAST_WORD, CHOICE, SENTENCE, WHOLE, WRITE):
        name = text.split()[1]
        (folder / f"{name}.yaml").write_text(text.lstrip() + common)
    return folder
