"""Serve a model on a Ray cluster, or on a local Ray, with two replicas, and ask it.

pip install '.[ray]'
python examples/ray_serve.py [MODEL]
"""

import sys

import httpx2
from ray import serve

from rwkv_cli.ray import serve_app
from rwkv_cli.server.settings import ServerSettings

settings = ServerSettings(model=sys.argv[1] if sys.argv[1:] else None)
serve.run(serve_app(settings, num_replicas=2, num_cpus=1), name="rwkv")  # at http://127.0.0.1:8000

question = {"prompt": "Once upon a time", "max_tokens": 20, "seed": 1}
answer = (
    httpx2.post("http://127.0.0.1:8000/v1/completions", json=question, timeout=60).raise_for_status().json()
)
print(question["prompt"] + answer["choices"][0]["text"])
