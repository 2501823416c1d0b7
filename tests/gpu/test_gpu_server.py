"""The server with the CUDA backend, on an emulated GPU: threads of its own read states that are on the device."""

import concurrent.futures
from pathlib import Path

import pytest
from helpers.actor import ByteTokenizer
from helpers.emulated_gpu import COMPILER, few_threads, tiny_backend
from helpers.server import answer_of, cached_of, serving

from rwkv_cli.files.model_file import ModelInfo
from rwkv_cli.model import Model
from rwkv_cli.text.templates import get_template

BYTES = {str(token): -1000 for token in range(257, 300)}
"""The model has more tokens than there are bytes: they never come."""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is here to emulate a GPU with")
def test_conversations_at_once_are_kept_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    with few_threads():
        backend = tiny_backend(tmp_path)
    source = {"name": "tiny", "sha256": "0" * 64}
    info = ModelInfo(backend.config, "fp16", None, get_template("dialogue"), {}, source)
    model = Model(info, Path("tiny.safetensors"), ByteTokenizer(), backend)
    fields = {"temperature": 0, "logit_bias": BYTES, "max_tokens": 4}
    with few_threads(), serving(model, disk_bytes=10**9) as client:
        messages = []
        client.said(messages, "A first message of some length", **fields)
        second = client.said(messages, "And another one", **fields)
        assert cached_of(second) >= len("User: A first message of some length\n\nAssistant:")
        asked = [f"What is number {n}?" for n in range(4)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = [
                *pool.map(lambda text: answer_of(client.ask(text, session=f"of {text[-2]}", **fields)), asked)
            ]
        assert len(together) == 4
        assert len(client.get("/v1/states").json()["data"]) == 4
        entry = client.ask("x", logprobs=True, top_logprobs=2, **fields)["choices"][0]["logprobs"]["content"][
            0
        ]
        assert entry["logprob"] <= entry["top_logprobs"][0]["logprob"]
    with few_threads(), serving(model, disk_bytes=10**9) as client:
        third = client.said(messages, "And the last", **fields)
        assert cached_of(third) > cached_of(second)
