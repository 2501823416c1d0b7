"""Folders of the independent package rwkv7-hf: its converter writes what is read, its model agrees on every token.

Needs the `peers` extra.
"""

import numpy as np
import pytest
from helpers.golden_text import ANSWER, CONFIG, PROMPT, WEIGHTS, answer_of, logits_of
from helpers.models import SHAPES, SHARED, difference, some_tokens, state_difference
from helpers.writers import random_weights, write_pth

from rwkv_cli.engine.backends.reference import ReferenceBackend
from rwkv_cli.engine.state import State
from rwkv_cli.files.checkpoints import ChatTemplate, open_checkpoint

torch = pytest.importorskip("torch", reason="needs the peers extra")
converter = pytest.importorskip("rwkv7_hf.converter", reason="needs the peers extra")

# Of the scale, for logits and states. Both compute in float32, in other orders of summation; after 200 tokens that has
# made a difference of 2e-6.
PROMISE = 1e-5


def converted(pth, folder, *options, precision="bf16"):
    """The folder that the package's converter makes of an official file."""
    converter.main(["--input", str(pth), "--output", str(folder), "--precision", precision, *options])
    return folder


def their_model(folder):
    return converter.RWKV7ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def as_state(cache):
    """Their cache, whose recurrent states are [key, value], as ours."""
    wkv, att, ffn = (
        np.concatenate([part.numpy() for part in parts])
        for parts in (cache.recurrent_state, cache.attention_shift, cache.ffn_shift)
    )
    return State(att, np.swapaxes(wkv, -1, -2).copy(), ffn)


def same_tensors(pth, folder):
    ours, theirs = open_checkpoint(pth), open_checkpoint(folder)
    assert (theirs.format, theirs.config) == ("hf", ours.config)
    for name in ours.config.tensor_shapes():
        np.testing.assert_array_equal(theirs.tensor(name), ours.tensor(name), err_msg=name)
    return theirs


def agrees(folder, length, seed=0):
    backend, model = ReferenceBackend(open_checkpoint(folder)), their_model(folder)
    tokens, state = some_tokens(backend.config, length, seed), State.zeros(backend.config)
    ours = backend.forward_all(tokens, state)
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens]), use_cache=True)
    assert difference(ours, theirs.logits[0].numpy()) <= PROMISE
    assert state_difference(state, as_state(theirs.past_key_values)) <= PROMISE


@pytest.mark.parametrize("options", [(), ("--low-memory",), ("--low-memory", "--max-shard-size", "30KB")])
@pytest.mark.parametrize("name", SHAPES)
def test_random_models(tmp_path, name, options):
    pth = write_pth(tmp_path / "x.pth", random_weights(SHAPES[name], seed=3))
    folder = converted(pth, tmp_path / "My Model", *options)
    checkpoint = same_tensors(pth, folder)
    assert checkpoint.name == "My Model"
    assert (len(checkpoint.files) > 1) == ("--max-shard-size" in options)
    assert checkpoint.dtype == "bf16"
    agrees(folder, 64)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "f16"), ("fp32", "f32")])
def test_other_precisions(tmp_path, precision, dtype):
    pth = write_pth(tmp_path / "x.pth", random_weights(SHAPES["tiny"], seed=5), dtype)
    folder = converted(pth, tmp_path / "m", precision=precision)
    assert same_tensors(pth, folder).dtype == dtype
    agrees(folder, 32, seed=1)


@pytest.mark.skipif(not (SHARED / "gosling.pth").exists(), reason="gosling.pth is not on this machine")
def test_gosling(tmp_path):
    folder = converted(SHARED / "gosling.pth", tmp_path / "gosling", "--low-memory")
    same_tensors(SHARED / "gosling.pth", folder)
    agrees(folder, 32)


@pytest.mark.parametrize("layout", ["reference", "thin"])
def test_its_chat_template_is_found(tmp_path, layout):
    pth = write_pth(tmp_path / "x.pth", random_weights(SHAPES["tiny"]))
    folder = converted(pth, tmp_path / "m", "--adapter-layout", layout)
    template = open_checkpoint(folder).chat_template
    if layout == "thin":  # it brings none
        assert template is None
    else:
        text = (folder / "chat_template.jinja").read_bytes().decode()
        assert template == ChatTemplate(text, "chat_template.jinja")


def test_its_greedy_answer_is_the_golden_text(tmp_path):
    folder = converted(write_pth(tmp_path / "x.pth", WEIGHTS), tmp_path / "m")
    model, tokens = their_model(folder), list(PROMPT)
    with torch.inference_mode():
        for _ in ANSWER:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert tuple(tokens[len(PROMPT) :]) == ANSWER
    logits = logits_of(folder)
    assert logits.shape[1] == CONFIG.vocab_size
    assert answer_of(logits) == ANSWER


def test_a_wrong_weight_is_noticed(tmp_path):
    weights = random_weights(SHAPES["tiny"])
    folder = converted(write_pth(tmp_path / "x.pth", weights), tmp_path / "m")
    weights["blocks.1.att.k_k"] = 1.1 * weights["blocks.1.att.k_k"] + 0.1
    tokens = some_tokens(SHAPES["tiny"], 16)
    with torch.inference_mode():
        theirs = their_model(folder)(torch.tensor([tokens])).logits[0].numpy()
    backend = ReferenceBackend(open_checkpoint(write_pth(tmp_path / "y.pth", weights)))
    assert difference(backend.forward_all(tokens, State.zeros(backend.config)), theirs) > 10 * PROMISE
