"""`rwkv batch --ray`: Ray Data hands shards to replicas on a cluster, and gives those of a lost one to another.

A shard is a row of a dataset of Ray, and a replica one of the actors of `map_batches`. A replica that ends, with its
process or its node, is started again by Ray, which repeats its shards; one whose file was written meanwhile is not
answered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, Self

from rwkv_cli.datasets.job import Answerer, Job
from rwkv_cli.datasets.plan import Plan, Shard
from rwkv_cli.datasets.table import Extent
from rwkv_cli.datasets.worker import Report, ShardWorker
from rwkv_cli.errors import DeviceError, FieldSpelling, RwkvError, UsageError
from rwkv_cli.ray import cluster
from rwkv_cli.reporting import Reporter

_MOST_TASKS = 100_000
"""Tasks of Ray, each a shard; of more shards, a task has several."""


class OnRay:
    """See `datasets.executor.Executor`; a context manager."""

    def __init__(
        self,
        job: Job,
        address: str | None,
        replicas: int | None,
        gpus: float | None,
        spelled: FieldSpelling,
    ) -> None:
        """`replicas` is None for as many as the cluster has room for, `gpus` for one each where there are any."""
        self._job, self._address, self._wanted, self._gpus = job, address, replicas, gpus
        self.replicas = replicas or 1
        self._spelled = spelled
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        """Raises UsageError where there is no cluster, DeviceError where it is too small."""
        with ExitStack() as stack:
            stack.enter_context(cluster.connected(self._address))
            job = self._job
            self._resources = cluster.resources_for(job.device, job.threads, self._gpus)
            device = cluster.device_for(job.device, self._resources)
            self._job = replace(job, device=device, threads=self._resources.num_cpus)
            self.replicas = self._wanted or self._resources.fitting()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def digest(self) -> str:
        """See `Executor.digest`: loads the model once on the cluster, so that a wrong option is known at once."""
        import ray

        task = ray.remote(_digest).options(**self._resources.options(), name="rwkv batch: check")
        try:
            found: tuple[str, int] = ray.get(task.remote(self._job, self._spelled))
        except Exception as error:
            raise DeviceError(f"the Ray cluster failed: {cluster.first_line(error)}") from None
        return _checked(*found)

    def run(self, plan: Plan, shards: Sequence[Shard]) -> Iterator[Report]:
        """See `Executor.run`."""
        import ray.data

        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        with ray.data.DataContext.current(context):
            n_tasks = min(len(shards), _MOST_TASKS)
            rows = ray.data.from_items([_row(shard) for shard in shards], override_num_blocks=n_tasks)
            done = rows.map_batches(
                Worker,
                fn_constructor_args=(replace(plan, shards=()), self._job, self._spelled),
                batch_size=1,
                compute=cluster.replicas(min(self.replicas, len(shards))),
                **self._resources.options(),
            )
            try:
                for row in done.iter_rows():
                    _checked(row.pop("message"), row.pop("code"))
                    yield Report(**row)
            except RwkvError:
                raise
            except Exception as error:
                raise DeviceError(f"the Ray cluster failed: {cluster.first_line(error)}") from None


def _checked(text: str, code: int) -> str:
    """A text with the exit code 0. Raises the error that it is with another one."""
    if code:
        raise UsageError(text) if code == UsageError.exit_code else RwkvError(text)
    return text


def _row(shard: Shard) -> dict[str, Any]:
    return {
        "number": shard.number,
        "source": shard.source,
        "first": shard.first,
        **asdict(shard.extent),
    }


# --- on the cluster -------------------------------------------------------------------------------------------------


def _digest(job: Job, spelled: FieldSpelling) -> tuple[str, int]:
    """The digest of a job, and 0; or a message with an exit code."""
    try:
        return Answerer(job, Reporter(), spelled).digest(), 0
    except RwkvError as error:
        return error.args[0], error.exit_code


class Worker:
    """A replica, as an actor of `map_batches`: a batch is one shard. An error is an answer, with an exit code: an
    exception would be tried again."""

    def __init__(self, plan: Plan, job: Job, spelled: FieldSpelling) -> None:
        self._worker: ShardWorker | None = None
        self._error: RwkvError | None = None
        try:
            self._worker = ShardWorker(plan, Answerer(job, Reporter(), spelled))
        except RwkvError as error:
            self._error = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Answer a shard: its report."""
        row = {
            name: values[0].item() if hasattr(values[0], "item") else values[0]
            for name, values in batch.items()
        }
        number, source, first = (row.pop(name) for name in ("number", "source", "first"))
        message, code, report = "", 0, Report(number, 0, 0, 0, 0.0)
        try:
            if self._error or self._worker is None:
                raise self._error or AssertionError
            report = self._worker.answer(Shard(number, source, first, Extent(**row)))
        except RwkvError as error:
            message, code = error.args[0], error.exit_code
        return {name: [value] for name, value in {**asdict(report), "message": message, "code": code}.items()}
