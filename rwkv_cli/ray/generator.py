"""`Generator`: the rows of a dataset of Ray, answered where they are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Unpack

from rwkv_cli.datasets import question
from rwkv_cli.datasets.columns import Columns
from rwkv_cli.datasets.job import Answerer, Job
from rwkv_cli.datasets.parquet import with_answers
from rwkv_cli.datasets.question import Question
from rwkv_cli.datasets.replica import Asked, Replica
from rwkv_cli.engine.constraints.grammar import Grammar
from rwkv_cli.errors import UsageError, as_argument
from rwkv_cli.reporting import Reporter
from rwkv_cli.sampling_settings import MAX_TOKENS, SamplingOverrides, check_names
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template

if TYPE_CHECKING:
    import pyarrow as pa


class Generator:
    """Answers the rows of batches, for `ray.data.Dataset.map_batches`. An actor loads the model once.

        answered = rows.map_batches(
            Generator,
            fn_constructor_kwargs={"model": "/models/g1-0.1b.safetensors", "max_tokens": 100, "seed": 1},
            batch_format="pyarrow",
            batch_size=512,
            num_cpus=2,  # the threads of the model
            num_gpus=0,  # 1 for a model on a GPU
            compute=rwkv_cli.ray.replicas(4),
        )

    A batch keeps its rows, their order and their columns, and gets those of `datasets.columns.ANSWER`: a row that
    cannot be answered has the reason in the column `error`, and null in place of a text. Columns with the names of
    options, such as `system`, `max_tokens` or `temperature`, apply to their row, as in `rwkv batch`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        template: str | Template | None = None,
        system: str | None = None,
        think: str | None = None,
        stop: Sequence[str] = (),
        max_tokens: int = MAX_TOKENS,
        constraint: Grammar | None = None,
        state: str | None = None,
        document: str | None = None,
        columns: Mapping[str, str] | None = None,
        prefix: str = "",
        **sampling: Unpack[SamplingOverrides],
    ) -> None:
        """Load a model, by a name or a path that every node has.

        `threads` is by default the actor's `num_cpus`, `device` a GPU if it has one. `batch_size` is how many rows are
        answered together, None for what suits the device. All rows continue from the saved `state`, a file or a name,
        or from a `document`, a text that is read once. `columns` gives the column of a field, such as
        {"prompt": "question"}; `prefix` begins the names of new columns. With a `seed`, the same row has the same
        answer in every run, wherever it is: its own seed is made of that and its prompt. The rest is as for
        `rwkv_cli.answers`. Raises an RwkvError.
        """
        check_names(sampling)
        if state is not None and document is not None:
            raise UsageError("give either {state} or {document}, not both")
        self._columns = Columns(columns or {}, None, prefix)
        seed = sampling.get("seed")
        self._seed = secrets.randbits(32) if seed is None else seed
        job = Job(
            model=model,
            device=device,
            threads=threads or _cores(),
            template=get_template(template) if isinstance(template, str) else template,
            system=system,
            think=think,
            stops=stop,
            max_tokens=max_tokens,
            sampling=sampling,
            constraint=constraint,
            state=state,
            document=document,
            batch_size=batch_size,
        )
        self._replica = Replica(Answerer(job, Reporter(), as_argument))

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table:
        """The rows of a batch with their answers, in every batch format as a table of Arrow.

        Raises UsageError for columns that cannot be used.
        """
        table = _table(batch)
        self._columns.check(table.column_names, "the dataset", has_prompts=True)
        used = {self._columns.column(name) for name in question.NAMES}
        rows = table.select([name for name in table.column_names if name in used]).to_pylist()
        asked = [self._asked(self._columns.question(row)) for row in rows]
        return with_answers(table, self._replica.submit(asked).result(), self._columns, None)

    def _asked(self, asked: Question) -> Asked:
        data = f"{self._seed}\0{asked.system or ''}\0{asked.prompt}".encode("utf-8", "surrogatepass")
        return Asked(asked, int.from_bytes(blake2b(data, digest_size=4).digest()), "")


def _table(batch: pa.Table | Mapping[str, Any]) -> pa.Table:
    """A batch of any format as a table: of Arrow, of NumPy's arrays by column, of pandas."""
    import pyarrow as pa

    if isinstance(batch, pa.Table):
        return batch
    return (
        pa.table(dict(batch))
        if isinstance(batch, Mapping)
        else pa.Table.from_pandas(batch, preserve_index=False)
    )


def _cores() -> int | None:
    """The cores of the actor that this runs in; None elsewhere."""
    import ray

    if not ray.is_initialized():
        return None
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU")
    return max(1, int(cores)) if cores else None
