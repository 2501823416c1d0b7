#!/usr/bin/env python3
"""Train the small RWKV-7 that has to reason, on tasks with one right answer.

    pip install '.[train]'
    python scripts/train_reasoning.py --minutes 8 --seed 0 --output reasoning/

The tasks are those of `reasoning_tasks.py`, drawn anew for every step. The output is a folder: `reasoning.pth`, an
official checkpoint in float16, and its vocabulary. About eight minutes on an H100; on a CPU it needs hours, for which
--steps, --batch and --length make smaller runs.

The model is computed as published, in float32; see `rwkv_cli/engine/backends/reference.py`. Only the recurrence is
rearranged: within a chunk of 16 tokens, what each token reads from the state is the solution of a triangular system.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reasoning_tasks as tasks
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

HEAD = 64
CHUNK = 16
DECAY_SCALE = math.exp(-0.5)
VOCABULARY = "rwkv_vocab_v20230424.txt"

ROWS = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a")
"""Vectors that official checkpoints store as [1, 1, C]."""

LONGEST = 64
"""The most elements of a stream."""

RESTART = 32
"""An endless example begins anew after this many rows, on average."""

SHARES = {"a5": 4, "s5": 4, "mod": 2, "walk": 2, "registers": 1, "reverse": 1, "add": 2, "multiply": 4}
"""How many rows of a batch a task gets, in proportion."""


# ------------------------------------------------------------------------------------------------------- the model


class LayerState(NamedTuple):
    """What a layer keeps of the tokens before: the two token shifts [B, C] and the wkv state [B, H, N, N]."""

    shift_att: Tensor
    wkv: Tensor
    shift_ffn: Tensor


def recurrence(
    S: Tensor, r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """y [B, T, H, N] of the recurrence from the state S [B, H, N, N], and the state after it; CHUNK divides T.

    S_t = S_{t-1} diag(w) - (S_{t-1} kk)(kk a)^T + v k^T and y_t = S_t r. With P_t the product of the decays of a chunk
    up to t, S_t = Z_t diag(P_t), and Z changes by rank-one terms alone: u_t b_t^T + v_t k_t^T. As u_t = -S_{t-1} kk_t
    is linear in the u before it, (1 - L) U = right-hand side, with L strictly lower triangular.
    """
    B, T, H, N = r.shape

    def chunks(x: Tensor) -> Tensor:  # [B, H, T / CHUNK, CHUNK, N]
        return x.view(B, T // CHUNK, CHUNK, H, N).permute(0, 3, 1, 2, 4)

    r, w, k, v, kk, a = (chunks(x) for x in (r, w, k, v, kk, a))
    log_decay = torch.log(w)
    total = log_decay.cumsum(-2)
    P, before = torch.exp(total), torch.exp(total - log_decay)
    erase, write, put, read = -kk * before, kk * a / P, k / P, r * P
    ones = torch.ones(CHUNK, CHUNK, device=r.device)
    lower, strictly = ones.tril(), ones.tril(-1)
    L = (erase @ write.mT) * strictly
    inverse = (
        torch.eye(CHUNK, device=r.device) + L
    )  # (1 - L)^-1 = (1 + L)(1 + L^2)(1 + L^4)(1 + L^8), as L^16 = 0
    power = L
    for _ in range(3):
        power = power @ power
        inverse = inverse + inverse @ power
    from_state = inverse @ erase
    U = inverse @ (((erase @ put.mT) * strictly) @ v)
    by_write, by_put = (read @ write.mT) * lower, (read @ put.mT) * lower
    read_state = read + by_write @ from_state  # y = S_0 read + the rest, with U = U_0 + from_state S_0^T
    within = by_write @ U + by_put @ v
    end = P[..., -1:, :]
    carry = torch.eye(N, device=r.device) + from_state.mT @ write  # S_end = (S_0 carry + add) diag(P)
    add = U.mT @ write + v.mT @ put
    outputs = []
    for c in range(T // CHUNK):
        outputs.append(within[:, :, c] + read_state[:, :, c] @ S.mT)
        S = (S @ carry[:, :, c] + add[:, :, c]) * end[:, :, c]
    return torch.stack(outputs, 2).permute(0, 2, 3, 1, 4).reshape(B, T, H, N), S


def shifted(x: Tensor, before: Tensor) -> Tensor:
    """What the token before had, [B, T, C]; `before` [B, C] is what the first one takes."""
    return torch.cat([before[:, None], x[:, :-1]], 1)


class TimeMix(nn.Module):
    """What takes the place of attention."""

    def __init__(self, layer: int, n_layer: int, C: int, ranks: dict[str, int]) -> None:
        super().__init__()
        self.layer, self.H = layer, C // HEAD
        ramp = torch.arange(C) / C
        depth = 1 - layer / n_layer
        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            self.register_parameter("x_" + name, nn.Parameter(1 - ramp ** (power * depth)))
        within = torch.arange(C) % HEAD / (HEAD - 1)
        self.w0 = nn.Parameter(-8 + 7 * within**0.9)
        self.a0 = nn.Parameter(torch.zeros(C))
        pairs = ("w", "a", "v", "g") if layer else ("w", "a", "g")
        if layer:
            self.v0 = nn.Parameter(torch.full((C,), 0.7))
        for name in pairs:
            down, up = torch.zeros(C, ranks[name]), torch.empty(ranks[name], C)
            if name == "g":
                nn.init.orthogonal_(down, 0.5)
            self.register_parameter(name + "1", nn.Parameter(down))
            self.register_parameter(name + "2", nn.Parameter(nn.init.orthogonal_(up, 0.3)))
        self.k_k = nn.Parameter(torch.full((C,), 0.85))
        self.k_a = nn.Parameter(torch.ones(C))
        self.r_k = nn.Parameter(torch.full((self.H, HEAD), -0.04))
        for name in ("receptance", "key", "value", "output"):
            linear = nn.Linear(C, C, bias=False)
            nn.init.orthogonal_(linear.weight, {"output": 0.0, "key": 0.3}.get(name, 1.0))
            setattr(self, name, linear)
        self.ln_x = nn.GroupNorm(self.H, C, eps=64e-5)

    def forward(self, x: Tensor, v_first: Tensor | None, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, C] -> its output, the values of layer 0, and the wkv state."""
        B, T, C = x.shape
        d = shifted(x, state.shift_att) - x
        xr, xw, xk, xv, xa, xg = (x + d * getattr(self, "x_" + name) for name in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = torch.exp(-DECAY_SCALE * torch.sigmoid(self.w0 + torch.tanh(xw @ self.w1) @ self.w2))
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)
        kk = F.normalize((k * self.k_k).view(B, T, self.H, HEAD), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, w, k, v, a = (z.view(B, T, self.H, HEAD) for z in (r, w, k, v, a))
        y, S = recurrence(state.wkv, r, w, k, v, kk, a)
        y = self.ln_x(y.reshape(B * T, C)).view(B, T, self.H, HEAD)
        y = y + (r * k * self.r_k).sum(-1, keepdim=True) * v
        return self.output(y.reshape(B, T, C) * g), v_first, S


class ChannelMix(nn.Module):
    """The feed-forward network, with a squared ReLU between."""

    def __init__(self, layer: int, n_layer: int, C: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(1 - (torch.arange(C) / C) ** (1 - layer / n_layer) ** 4)
        self.key, self.value = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x [B, T, C] -> its output."""
        y: Tensor = self.value(torch.relu(self.key(x + (shifted(x, before) - x) * self.x_k)) ** 2)
        return y


class Block(nn.Module):
    """A layer."""

    def __init__(self, layer: int, n_layer: int, C: int, ranks: dict[str, int]) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(C)
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.att, self.ffn = TimeMix(layer, n_layer, C, ranks), ChannelMix(layer, n_layer, C)

    def forward(
        self, x: Tensor, v_first: Tensor | None, state: LayerState
    ) -> tuple[Tensor, Tensor, LayerState]:
        """The residual stream after this layer, the values of layer 0, and the state."""
        u = self.ln1(x)
        y, v_first, S = self.att(u, v_first, state)
        x = x + y
        h = self.ln2(x)
        return x + self.ffn(h, state.shift_ffn), v_first, LayerState(u[:, -1], S, h[:, -1])


class Rwkv7(nn.Module):
    """The whole model, its parameters under their official names."""

    def __init__(self, n_layer: int, C: int, V: int, ranks: dict[str, int]) -> None:
        super().__init__()
        self.emb = nn.Embedding(V, C)
        nn.init.uniform_(self.emb.weight, -0.02, 0.02)
        self.blocks = nn.ModuleList(Block(i, n_layer, C, ranks) for i in range(n_layer))
        self.ln_out = nn.LayerNorm(C)
        self.head = nn.Linear(C, V, bias=False)
        nn.init.orthogonal_(self.head.weight, 0.5)

    def empty(self, B: int) -> list[LayerState]:
        """The state before the first token, of B rows."""
        C, device = self.emb.embedding_dim, self.emb.weight.device
        shift = torch.zeros(B, C, device=device)
        wkv = torch.zeros(B, C // HEAD, HEAD, HEAD, device=device)
        return [LayerState(shift, wkv, shift) for _ in self.blocks]

    def forward(self, tokens: Tensor, states: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """Logits [B, T, V] of tokens [B, T], and the state after them."""
        first: Any = self.blocks[0]
        x, v_first, after = first.ln0(self.emb(tokens)), None, []
        for block, state in zip(self.blocks, states, strict=True):
            x, v_first, state = block(x, v_first, state)
            after.append(state)
        return self.head(self.ln_out(x)), after


# -------------------------------------------------------------------------------------------------------- the data


def row(task: str, length: int, longest: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """One row of a batch: examples of a task, one after another, cut off at `length`; unused places are not asked.

    Streams have from 3 to `longest` elements, uniformly on a logarithmic scale.
    """
    tokens: list[int] = []
    targets: list[int] = []
    while len(tokens) < length:
        made = tasks.example(task, round(math.exp(rng.uniform(math.log(3), math.log(longest)))), rng)
        if tokens and len(tokens) + len(made) > length:
            break
        tokens += made.tokens
        targets += made.targets
    padding = max(0, length - len(tokens))
    return (tokens + [tasks.END] * padding)[:length], (targets + [-1] * padding)[:length]


class Batch(NamedTuple):
    """Rows of a batch, and whether each goes on from the state after the same row of the worker's batch before."""

    tokens: Tensor  # [B, T]
    targets: Tensor  # [B, T]
    kinds: Tensor  # [B], of TASKS
    goes_on: Tensor  # [B], 0 or 1


class Batches(torch.utils.data.IterableDataset[Batch]):
    """Batches of rows, each with its task. The examples grow longer in the first half of the run.

    What is endless is cut into rows, and the model reads one after the other with the state that it has: so it learns
    to keep a state that is correct for far more tokens than a row has.
    """

    def __init__(self, batch: int, length: int, steps: int, seed: int) -> None:
        self.length, self.steps, self.seed = length, steps, seed
        wheel = [task for task, share in SHARES.items() for _ in range(share)]
        self.names = [wheel[i * len(wheel) // batch] for i in range(batch)]

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self.seed, number])
        endless: dict[int, Iterator[tuple[int, int]]] = {}
        kinds = torch.tensor([tasks.TASKS.index(name) for name in self.names])
        for step in range(number, self.steps, workers):
            longest = 8 * (LONGEST / 8) ** min(1.0, 2 * step / self.steps)
            goes_on, rows = torch.zeros(len(self.names)), []
            for i, name in enumerate(self.names):
                if name not in tasks.ENDLESS:
                    rows.append(row(name, self.length, longest, rng))
                    continue
                if i in endless and rng.random() > 1 / RESTART:
                    goes_on[i] = 1
                else:
                    endless[i] = tasks.ENDLESS[name](rng)
                pairs = list(itertools.islice(endless[i], self.length))
                rows.append(([token for token, _ in pairs], [target for _, target in pairs]))
            tokens, targets = (torch.tensor([pair[i] for pair in rows]) for i in range(2))
            yield Batch(tokens, targets, kinds, goes_on)


def kept(states: list[LayerState], goes_on: Tensor) -> list[LayerState]:
    """The states of the rows that go on; the others begin with an empty one."""
    return [
        LayerState(*(part.detach() * goes_on.view(-1, *[1] * (part.ndim - 1)) for part in state))
        for state in states
    ]


# ---------------------------------------------------------------------------------------------------- the training


def groups_of(model: Rwkv7, decay: float) -> list[dict[str, Any]]:
    """Parameters for the optimizer: weight decay for matrices alone."""
    matrices = [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def schedule(done: float, peak: float) -> float:
    """The learning rate when this fraction of the run is done: a short rise, then a cosine down to nothing."""
    rise = 0.02
    if done < rise:
        return peak * (done + 1e-3) / rise
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - rise) / (1 - rise)))))


def train(model: Rwkv7, arguments: argparse.Namespace, device: str) -> None:
    """Train until the steps or the minutes are over."""
    data = torch.utils.data.DataLoader(
        Batches(arguments.batch, arguments.length, arguments.steps, arguments.seed),
        batch_size=None,
        num_workers=arguments.workers,
        pin_memory=device == "cuda",
    )
    fused = device == "cuda"  # compilation pays there: most of the time goes into moving memory
    optimizer = torch.optim.AdamW(groups_of(model, 0.05), betas=(0.9, 0.98), eps=1e-10, fused=fused)
    computed = torch.compile(model) if fused else model
    workers = max(1, arguments.workers)
    states = [model.empty(arguments.batch) for _ in range(workers)]  # after the last batch of each
    begin = time.monotonic()
    for step, batch in enumerate(data):
        done = max(step / arguments.steps, (time.monotonic() - begin) / (60 * arguments.minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule(done, arguments.rate)
        tokens, targets, kinds, goes_on = (x.to(device, non_blocking=True) for x in batch)
        logits, after = computed(tokens, kept(states[step % workers], goes_on))
        states[step % workers] = after
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % arguments.report == 0 or step == arguments.steps - 1:
            right = (logits.argmax(-1) == targets) & (targets >= 0)
            shares = [
                f"{name} {float(right[kinds == i].sum() / (targets[kinds == i] >= 0).sum().clamp(min=1)):.3f}"
                for i, name in enumerate(tasks.TASKS)
            ]
            seconds = time.monotonic() - begin
            print(f"{step:6} {seconds:5.0f}s loss {loss.item():.4f}  {'  '.join(shares)}", flush=True)
            save(model, arguments.output)


def save(model: Rwkv7, folder: Path) -> None:
    """Write the checkpoint, rounded to float16, and its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().half().cpu().view(1, 1, -1)
        if name.split(".")[-1] in ROWS
        else tensor.half().cpu()
        for name, tensor in model.state_dict().items()
    }
    torch.save(weights, folder / "reasoning.pth")
    (folder / VOCABULARY).write_bytes(tasks.vocabulary())


@torch.no_grad()
def by_length(model: Rwkv7, device: str, length: int = 256) -> dict[str, list[float]]:
    """How often the label of a stream is right, in stretches of 16 tokens."""
    found = {}
    for task in tasks.STREAMS:
        rng = np.random.default_rng(1)
        rows = [tasks.example(task, length, rng) for _ in range(64)]
        tokens = torch.tensor([r.tokens[:length] for r in rows], device=device)
        targets = torch.tensor([r.targets[:length] for r in rows], device=device)
        logits, _ = model(tokens, model.empty(len(rows)))
        right = (logits.argmax(-1) == targets).float()
        found[task] = [round(float(x), 3) for x in right.mean(0).view(-1, 16).mean(1)]
    return found


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("reasoning"), help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192, help="channels, a multiple of 64")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row, a multiple of 16")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60, help="the longest time to train")
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--workers", type=int, default=8, help="processes that draw examples")
    parser.add_argument("--report", type=int, default=500, help="steps between two reports")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = {"w": 32, "a": 32, "v": 32, "g": 64}
    model = Rwkv7(arguments.layers, arguments.width, tasks.VOCAB_SIZE, ranks).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    train(model, arguments, device)
    save(model, arguments.output)
    print(json.dumps(by_length(model, device)))


if __name__ == "__main__":
    main()
