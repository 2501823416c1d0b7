"""`rwkv batch`, once its options are known: what executes it, and what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from rwkv_cli.cli.options import as_flag
from rwkv_cli.cli.terminal import ui
from rwkv_cli.cli.terminal.progress import Rows, TerminalReporter, counting_rows
from rwkv_cli.datasets.executor import Executor, InProcess
from rwkv_cli.datasets.job import Answerer, Job
from rwkv_cli.datasets.processes import Processes
from rwkv_cli.datasets.run import Wanted, prepare
from rwkv_cli.datasets.storage import OutputFolder
from rwkv_cli.engine.backends import registry
from rwkv_cli.reporting import pluralize


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and how much of it a batch may have."""

    address: str | None  # None for that of RAY_ADDRESS, or a local one
    replicas: int | None  # None for as many as fit
    gpus: float | None  # of a replica; None for one where the cluster has any


class _Counted:
    """Where replicas tell of their answers, which nobody counts before the run is prepared."""

    def __init__(self) -> None:
        self.rows = Rows(0)

    def answered(self, rows: int, tokens: int) -> None:
        """So many more rows were answered; fewer, if a replica was lost with those that it had not written."""
        self.rows.answered(rows, tokens)


def run(job: Job, wanted: Wanted, cluster: Cluster | None, quiet: bool) -> int:
    """Answer a dataset: the exit code, 1 if a row failed. Raises an RwkvError that ends the batch."""
    counted, failed = _Counted(), 0
    with OutputFolder(wanted.output).locked(), _executor(job, cluster, counted, quiet) as executor:
        ready = prepare(wanted, executor)
        if ready.before and not quiet:
            n_before = sum(each.rows for each in ready.before)
            ui.note(f"{pluralize(n_before, 'row')} of an earlier run: continuing with the other rows")
        rows = counted.rows = Rows(sum(each.extent.rows for each in ready.left))
        with counting_rows(rows, quiet):
            for report in ready.reports(executor):
                failed += report.failed
                if cluster:  # whose replicas tell of whole shards
                    rows.answered(report.rows, report.tokens)
    if not quiet:
        ui.note(f"{rows}; the answers are in {wanted.output}")
    failed += sum(each.failed for each in ready.before)
    if failed:
        ui.error(f"{failed:,} of {pluralize(ready.plan.rows, 'row')} failed: the column of errors says why")
    return 1 if failed else 0


@contextmanager
def _executor(job: Job, cluster: Cluster | None, counted: _Counted, quiet: bool) -> Iterator[Executor]:
    """What has the shards answered."""
    if cluster:
        from rwkv_cli.ray.shards import OnRay

        with OnRay(job, cluster.address, cluster.replicas, cluster.gpus, as_flag) as on_ray:
            yield on_ray
        return
    devices = registry.expand(job.device)
    if len(devices) > 1:
        with closing(Processes(job, devices, as_flag, counted.answered)) as processes:
            yield processes
        return

    def opened() -> Answerer:
        with TerminalReporter(quiet) as reporter:
            answerer = Answerer(replace(job, device=devices[0]), reporter, as_flag)
        model = answerer.model
        ui.detail(f"{model.path}: {model.backend.description}, template {answerer.layout.name}")
        return answerer

    yield InProcess(opened, lambda answer: counted.answered(1, answer.generated_tokens))
