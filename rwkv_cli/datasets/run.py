"""A batch from its input to its output: planned or continued, and answered shard by shard by whatever executes it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rwkv_cli.datasets import plan as plans
from rwkv_cli.datasets.columns import Columns
from rwkv_cli.datasets.executor import Executor
from rwkv_cli.datasets.plan import MANIFEST, SUCCESS, Plan, Shard
from rwkv_cli.datasets.storage import OutputFolder, Source
from rwkv_cli.datasets.worker import Report, done_before
from rwkv_cli.errors import UsageError, literal

_READERS = 8  # files of answers that are looked at, at the same time


@dataclass(frozen=True)
class Wanted:
    """What a run is asked for, beside the job."""

    inputs: Sequence[str]  # files, folders and globs
    output: str  # a folder
    columns: Columns = field(default_factory=Columns)
    shard_rows: int | None = None  # None for a number that suits the input, or for that of the manifest
    seed: int | None = None  # None for a random one, or for that of the manifest


@dataclass
class Run:
    """A run that is ready to begin."""

    plan: Plan
    left: Sequence[Shard]  # that are not done
    before: Sequence[Report]  # of those that are

    def reports(self, executor: Executor) -> Iterator[Report]:
        """Have all that is left answered. Raises what the executor raises; the shards that are done then stay."""
        if self.left:
            yield from executor.run(self.plan, self.left)
        self.plan.folder.write(SUCCESS, b"")


def prepare(wanted: Wanted, executor: Executor) -> Run:
    """Plan a run, or continue the one whose manifest is in the output. Its folder has to be locked.

    Raises UsageError, before anything is answered, for an input, output or options that cannot be used, or that are
    others than those of the manifest.
    """
    folder = OutputFolder(wanted.output)
    names = folder.names()
    name, sources = plans.find_sources(wanted.inputs, folder.url)
    if MANIFEST in names:
        plan = Plan.from_json(folder.read(MANIFEST), folder.url)
        _check_same(plan, wanted, executor.digest())
        if (name, [*plan.sources]) != (plan.format, sources):
            plan = _replanned(plan, name, sources)
    else:
        if data := sorted(each for each in names if not each.startswith((".", "_"))):
            raise UsageError(
                f"{literal(folder.url)} has other files, such as {literal(data[0])}: use an empty folder"
            )
        found = plans.divide(name, sources, wanted.columns, wanted.shard_rows, executor.replicas)
        seed = secrets.randbits(32) if wanted.seed is None else wanted.seed
        plan = Plan(
            executor.digest(), seed, name, wanted.columns, found.shard_rows, sources, found.shards, folder.url
        )
        folder.write(MANIFEST, plan.to_json().encode())
    done = [shard for shard in plan.shards if plan.file_of(shard) in names]
    with ThreadPoolExecutor(_READERS) as pool:
        before = [*pool.map(lambda shard: done_before(plan, shard), done)]
    numbers = {report.shard for report in before}
    return Run(plan, [shard for shard in plan.shards if shard.number not in numbers], before)


def _check_same(plan: Plan, wanted: Wanted, digest: str) -> None:
    """Raise UsageError where a run would not be the one that was begun."""
    where = literal(plan.output)
    if digest != plan.run or wanted.columns != plan.columns:
        raise UsageError(
            f"{where} has answers of another model, or with other options: use the same again, or another folder"
        )
    for option, value, before in (
        ("seed", wanted.seed, plan.seed),
        ("shard_rows", wanted.shard_rows, plan.shard_rows),
    ):
        if value not in (None, before):
            raise UsageError(
                f"{where} was begun with {{{option}={before}}}, not with {value}: leave it out, or use another folder"
            )


def _replanned(plan: Plan, name: str, sources: Sequence[Source]) -> Plan:
    """The plan for files that are not known to be the same: their rows have to be. Raises UsageError."""
    changed = UsageError(
        f"the input has changed since {literal(plan.output)} was begun: change it back, or use another folder"
    )
    if name != plan.format:
        raise changed
    found = plans.divide(name, sources, plan.columns, plan.shard_rows)
    if [*found.shards] != [*plan.shards] or len(sources) != len(plan.sources):
        raise changed
    return Plan(plan.run, plan.seed, name, plan.columns, plan.shard_rows, sources, found.shards, plan.output)
