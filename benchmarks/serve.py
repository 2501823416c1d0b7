#!/usr/bin/env python3
"""The server: one stream, many clients, a question beside a long prompt, sessions that are resumed, and endurance.

    python benchmarks/serve.py --model FILE
    python benchmarks/serve.py --model FILE --only endurance --minutes 10
    python benchmarks/serve.py --model FILE --against OTHER.gguf

With `--against`, only llama-cpp-python's server is measured beside, with the same model in another form.

Each figure is the median of several rounds; what is compared is measured in turns, seconds apart.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from rwkv_cli import load, machine, paths
from rwkv_cli.model import Model

TOKENS = 128
MOST_TOKENS = 4000
ROUNDS = 5
ROUNDS_AGAINST = 3
LONG = 8000
SESSIONS = 200
ENDLESS = {"logit_bias": {"0": -1000}, "temperature": 0}
"""The end of a document never comes."""


@dataclass
class Server:
    """A server as a process of its own."""

    process: subprocess.Popen[str]
    client: httpx2.Client

    @property
    def rss(self) -> int:
        """Bytes of memory that are its own: without the pages of mapped files."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", text)
        return int(found[1]) * 1024 if found else 0

    def stream(self, prompt: str, n: int = TOKENS) -> tuple[float, float]:
        """Seconds to the first token of a text, and tokens per second after it, as the server counts them.

        The client does no more with what comes than it must: it has the cores of the server.
        """
        fields = {"prompt": prompt, "max_tokens": n, "stream": True, **ENDLESS}
        fields["stream_options"] = {"include_usage": True}
        url = self.client.base_url
        first, last, usage = 0.0, 0.0, b""
        with contextlib.closing(http.client.HTTPConnection(url.host, url.port, timeout=600)) as connection:
            since = time.perf_counter()
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(fields), headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for line in response:
                if b'"finish_reason":null' in line:
                    last = time.perf_counter()
                    first = first or last
                elif b'"usage":{' in line:
                    usage = line
        count = json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]
        return first - since, (count - 1) / (last - first)

    def total(self, clients: int) -> float:
        """Tokens per second of several clients together."""
        since = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda n: self.whole(f"Once upon a time number {n}"), range(clients)))
        return clients * TOKENS / (time.perf_counter() - since)

    def whole(self, prompt: str, n: int = TOKENS) -> None:
        """Have a text continued."""
        fields = {"prompt": prompt, "max_tokens": n, **ENDLESS}
        self.client.post("/v1/completions", json=fields).raise_for_status()

    def chat(self, messages: list[dict[str, str]], n: int = 8) -> dict[str, Any]:
        """An answer in a conversation."""
        response = self.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": n})
        response.raise_for_status()
        body: dict[str, Any] = response.json()
        messages.append({"role": "assistant", "content": body["choices"][0]["message"]["content"]})
        return body


@contextlib.contextmanager
def serving(model: str, folder: Path, *arguments: str) -> Iterator[Server]:
    """A server with a model; its data is in `folder`, the compiled kernels are the user's."""
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    for kernels in paths.cache_folder().glob("kernels-*"):
        if not (link := cache / kernels.name).exists():
            link.symlink_to(kernels)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rwkv_cli",
            "serve",
            "--port",
            "0",
            "-m",
            model,
            "--max-queue",
            "1000",
            *arguments,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RWKV_CACHE_DIR": str(cache), "RWKV_DATA_DIR": str(folder / "data")},
    )
    assert process.stderr
    address = next(line.split()[-1] for line in process.stderr if line.startswith("serving at "))
    threading.Thread(target=lambda: [*process.stderr], daemon=True).start()  # type: ignore[misc]
    limits = httpx2.Limits(max_connections=200)
    try:
        with httpx2.Client(base_url=address, timeout=600, limits=limits) as client:
            yield Server(process, client)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def serving_llama(gguf: Path) -> Iterator[Server]:
    """llama-cpp-python's server, with as many threads as ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port)]
    command += ["--n_threads", str(machine.default_threads()), "--n_ctx", "4096", "--verbose", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            while process.poll() is None:
                with contextlib.suppress(httpx2.HTTPError):
                    client.get("/v1/models").raise_for_status()
                    break
                time.sleep(0.1)
            assert process.poll() is None, "llama-cpp-python's server ended: it is in the extra benchmarks"
            yield Server(process, client)
    finally:
        process.terminate()
        process.wait()


def against(ours: Server, gguf: Path) -> dict[str, float]:
    """Both servers in turns: one client, eight clients, and the first token of a short prompt."""
    found = dict[str, list[float]]()
    with serving_llama(gguf) as theirs:
        theirs.whole("warm up", 8)
        for turn in range(ROUNDS_AGAINST):
            for name, server in (("rwkv", ours), ("llama.cpp", theirs)):
                for n in (1, 8):
                    found.setdefault(f"{name}, {n} clients, tokens/s", []).append(server.total(n))
                first = first_token(server, [{"role": "user", "content": f"Hello, number {turn}"}])
                found.setdefault(f"{name}, first token, ms", []).append(1000 * first)
    return {what: statistics.median(values) for what, values in found.items()}


def one_stream(server: Server, model: Model) -> dict[str, float]:
    """One stream, next to the same tokens without a server."""
    own, served, n = [], [], TOKENS
    for _ in range(1 + 2 * ROUNDS):
        generation = model.generate("Once upon a time", max_tokens=n, temperature=0, logit_bias={0: -1000})
        for _step in generation:
            pass
        own.append(generation.usage.decode_speed)
        served.append(server.stream("Once upon a time", n)[1])
        n = min(max(TOKENS, int(own[-1])), MOST_TOKENS)  # for about a second
    ratios = [a / b for a, b in zip(served[1:], own[1:], strict=True)]
    return {
        "generate, tokens/s": statistics.median(own[1:]),
        "one stream, tokens/s": statistics.median(served[1:]),
        "ratio": statistics.median(ratios),
        "ratio of the fastest rounds": max(served[1:]) / max(own[1:]),
    }


def clients(server: Server, _: Model) -> dict[str, float]:
    """Eight clients together, next to one."""
    one, eight = [], []
    for _round in range(ROUNDS):
        one.append(server.total(1))
        eight.append(server.total(8))
    ratios = [a / b for a, b in zip(eight, one, strict=True)]
    return {
        "1 client, tokens/s": statistics.median(one),
        "8 clients, tokens/s": statistics.median(eight),
        "ratio": statistics.median(ratios),
    }


def beside(server: Server, _: Model) -> dict[str, float]:
    """The first token of a short question, alone and while a long prompt is read."""
    alone, busy = [], []
    for turn in range(ROUNDS):
        alone.append(server.stream(f"A short question, number {turn}", 2)[0])
        long = f"{turn} " + "the quick brown fox jumps " * (LONG // 5)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(server.whole, long, 1)
            time.sleep(0.2)
            busy.append(server.stream(f"Another short question, number {turn}", 2)[0])
            is_still_read = not reading.done()
        assert is_still_read, "the long prompt was read too fast to tell"
    return {"alone, s": statistics.median(alone), "beside, s": statistics.median(busy), "most, s": max(busy)}


def sessions(server: Server, _: Model) -> dict[str, float]:
    """Sessions that are resumed from disk, next to a prompt without a history; and what idle ones cost."""
    before = server.rss
    talks = []
    for number in range(SESSIONS):
        talk = [{"role": "user", "content": f"This is conversation {number}, " + "and so on " * 20}]
        server.chat(talk)
        talks.append(talk)
    grown = server.rss - before
    fresh, resumed, read = [], [], 0
    for number in range(10):
        fresh.append(first_token(server, [{"role": "user", "content": f"Hi {number}"}]))
        talk = talks[number]  # the oldest ones: long gone from memory
        talk.append({"role": "user", "content": f"Hi {number}"})
        resumed.append(first_token(server, talk))
        other = talks[10 + number]  # which nobody has continued yet
        other.append({"role": "user", "content": f"Hi {number}"})
        usage = server.chat(other)["usage"]
        read = max(read, usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
    return {
        "memory of 200 idle sessions, MB": grown / 1e6,
        "first token, fresh, ms": 1000 * statistics.median(fresh),
        "first token, resumed, ms": 1000 * statistics.median(resumed),
        "tokens read again, at most": read,
    }


def first_token(server: Server, messages: list[dict[str, str]]) -> float:
    """Seconds to the first token of an answer, which is read to its end: what is kept then delays no other."""
    fields = {"messages": messages, "max_tokens": 2, "stream": True}
    since, first = time.perf_counter(), 0.0
    with server.client.stream("POST", "/v1/chat/completions", json=fields) as response:
        for line in response.iter_lines():
            if '"delta":{"content"' in line:
                first = first or time.perf_counter()
    return (first or time.perf_counter()) - since


def history(server: Server, _: Model) -> dict[str, float]:
    """A conversation of 300 turns, whose history is sent whole each time: tokens that were read, early and late."""
    talk: list[dict[str, str]] = []
    read = []
    for turn in range(300):
        talk.append({"role": "user", "content": f"This is message {turn}."})
        usage = server.chat(talk)["usage"]
        read.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
    return {
        "read per turn, turns 2 to 50": max(read[1:50]),
        "read per turn, turns 250 to 300": max(read[250:]),
    }


def endurance(server: Server, minutes: float) -> dict[str, float]:
    """Many clients for minutes: errors, and memory at the beginning and after each minute."""
    until, done, failed = time.time() + 60 * minutes, [0] * 64, [0] * 64

    def client(number: int) -> None:
        turn = 0
        while time.time() < until:
            talk = [{"role": "user", "content": f"Client {number} says {turn}"}]
            try:
                for _ in range(3):
                    server.chat(talk, 16)
                    talk.append({"role": "user", "content": "And then?"})
                done[number] += 3
            except httpx2.HTTPError:
                failed[number] += 1
            turn += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    memory, begun = {"memory at the start, MB": server.rss / 1e6}, time.time()
    while time.time() < until:
        time.sleep(max(min(60, until - time.time()), 0))
        memory[f"memory after {(time.time() - begun) / 60:.0f} min, MB"] = server.rss / 1e6
    for thread in threads:
        thread.join()
    return {"requests": sum(done), "errors": sum(failed), **memory}


PARTS: dict[str, Callable[[Server, Model], dict[str, float]]] = {
    "one-stream": one_stream,
    "clients": clients,
    "beside": beside,
    "sessions": sessions,
    "history": history,
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(paths.EMBEDDED_MODEL), help="a model file")
    parser.add_argument("--only", choices=[*PARTS, "endurance"], action="append", help="what to measure")
    parser.add_argument("--minutes", type=float, default=1, help="of the endurance test")
    parser.add_argument("--against", type=Path, metavar="GGUF", help="for llama-cpp-python's server")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    parts, results = PARTS | {"endurance": lambda server, _: endurance(server, options.minutes)}, {}
    if options.against:
        parts = {"against": lambda server, _: against(server, options.against)}
    model = load(options.model)
    small = ("--state-memory", "50MB")  # so that idle sessions leave it
    with tempfile.TemporaryDirectory() as folder, serving(options.model, Path(folder), *small) as server:
        server.whole("warm up", 8)
        for name in [*parts] if options.against else options.only or [*parts]:
            found = results[name] = parts[name](server, model)
            for what, value in found.items():
                print(f"{name:12} {what:36} {value:10.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
