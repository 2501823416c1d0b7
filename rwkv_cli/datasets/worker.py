"""What one replica does in a batch: it reads shards, has their rows answered, and writes their answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rwkv_cli.datasets.job import Answerer
from rwkv_cli.datasets.plan import Plan, Shard
from rwkv_cli.datasets.replica import Asked, Replica
from rwkv_cli.errors import UsageError, literal
from rwkv_cli.sessions.batch import Answer


@dataclass(frozen=True)
class Report:
    """A shard that is done."""

    shard: int  # its number
    rows: int
    failed: int  # rows with an error
    tokens: int  # that were generated; 0 for a shard that was done before
    seconds: float


class ShardWorker:
    """Answers shards of a plan with one model; any number of threads may have it answer one each."""

    def __init__(
        self, plan: Plan, answerer: Answerer, on_answer: Callable[[Answer], None] | None = None
    ) -> None:
        """Raises UsageError where the model, or the options, are not those of the plan."""
        if answerer.digest() != plan.run:
            raise UsageError(
                f"{literal(str(answerer.model.path))} is another model here than where the batch was planned"
            )
        self._plan, self._format, self._folder = plan, plan.make_format(), plan.folder
        self._replica = Replica(answerer, on_answer)

    def answer(self, shard: Shard) -> Report:
        """Answer the rows of a shard, and write them: nothing where its file is there already.

        Raises UsageError where the input has changed or cannot be read, StorageError, DeviceError.
        """
        since = time.perf_counter()
        name = self._plan.file_of(shard)
        if self._folder.has(name):  # it was done by a worker that ended before it could say so
            return replace(done_before(self._plan, shard), seconds=time.perf_counter() - since)
        rows = self._format.read(self._plan.sources[shard.source], shard.extent)
        first = self._plan.seed + shard.first
        asked = [Asked(each, first + i, rows.where(i)) for i, each in enumerate(rows.questions)]
        answers = self._replica.submit(asked).result()
        self._folder.write(name, rows.written(answers, shard.first))
        failed = sum(bool(each.error) for each in answers)
        tokens = sum(each.generated_tokens for each in answers)
        return Report(shard.number, len(answers), failed, tokens, time.perf_counter() - since)

    def close(self) -> None:
        """End it; shards on their way fail."""
        self._replica.close()


def done_before(plan: Plan, shard: Shard) -> Report:
    """The report of a shard whose file is there. Raises UsageError unless that has as many rows as the shard."""
    name = plan.file_of(shard)
    try:
        rows, failed = plan.make_format().tally(plan.folder.read(name))
    except ValueError:
        rows, failed = -1, 0
    if rows != shard.extent.rows:
        raise UsageError(
            f"{literal(plan.output)}/{name} does not have the {shard.extent.rows:,} rows of its shard: remove it, "
            "and it is answered again"
        )
    return Report(shard.number, rows, failed, 0, 0.0)
