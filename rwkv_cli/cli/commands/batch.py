"""`rwkv batch`: a dataset of prompts, answered row by row into another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rwkv_cli.cli import options
from rwkv_cli.cli.constraint_options import Constraint, with_constraint
from rwkv_cli.cli.sampling_options import with_sampling
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides

if TYPE_CHECKING:
    from rwkv_cli.datasets.columns import Columns

DATASET, CLUSTER = "Dataset", "Cluster (needs pip install '.[ray]')"

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="JSON lines or Parquet: files, folders and globs, here or at s3:// and so on.",
    ),
]
OutputFolder = Annotated[str, typer.Argument(metavar="OUTPUT", help="The folder of the answers.")]
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="Take a field from another column, such as prompt=question; FIELD= takes it from none; repeatable.",
        rich_help_panel=DATASET,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep-columns",
        metavar="NAMES",
        help="Columns to carry along, such as id,topic.",
        show_default="all",
        rich_help_panel=DATASET,
    ),
]
Prefix = Annotated[
    str,
    typer.Option(
        "--prefix",
        metavar="TEXT",
        help="Begin the names of the new columns with this.",
        show_default="none",
        rich_help_panel=DATASET,
    ),
]
ShardRows = Annotated[
    int | None,
    typer.Option(
        "--shard-rows",
        min=1,
        metavar="N",
        help="Rows per file of answers, which are what an interruption costs.",
        show_default="128 to 9,984",
        rich_help_panel=DATASET,
    ),
]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray", help="Answer on a Ray cluster: that of RAY_ADDRESS, or a local one.", rich_help_panel=CLUSTER
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="Answer on this cluster, such as auto or ray://head:10001.",
        rich_help_panel=CLUSTER,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        min=1,
        metavar="N",
        help="Copies of the model on the cluster.",
        show_default="as many as fit",
        rich_help_panel=CLUSTER,
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus",
        min=0,
        metavar="X",
        help="GPUs per copy on the cluster.",
        show_default="1 where there are any",
        rich_help_panel=CLUSTER,
    ),
]


@with_constraint
@with_sampling
def batch(
    inputs: Inputs,
    output: OutputFolder,
    *,
    column: Column = None,
    keep_columns: Keep = None,
    prefix: Prefix = "",
    shard_rows: ShardRows = None,
    batch_size: options.BatchSize = None,
    template: options.Template = None,
    raw: options.Raw = False,
    system: options.System = None,
    think: options.Think = None,
    model: options.Model = None,
    device: options.Devices = "auto",
    threads: options.Threads = None,
    sampling: SamplingOverrides,
    constraint: Constraint = None,
    state: options.State = None,
    no_cache: options.NoCache = False,
    ray: Ray = False,
    ray_address: RayAddress = None,
    replicas: Replicas = None,
    gpus: Gpus = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    quiet: options.Quiet = False,
) -> None:
    """Answer a dataset of prompts, every row once.

    The answers have the format of the input, and its columns beside their own. They are written in files that are
    complete or absent; after any interruption, the same command continues, and computes only what is not there. See
    docs/datasets.md.

    Examples:
        # Answer the column "prompt" of a file
        rwkv batch -m g1-0.1b questions.jsonl answers
        # Answer another column of many files, and carry only one along
        rwkv batch 'in/*.parquet' out --column prompt=question --keep-columns id
        # On two GPUs
        rwkv batch -m 2.9b in.parquet out --device cuda:0,cuda:1
        # On a cluster, from and to an object store
        rwkv batch -m /models/2.9b.safetensors s3://b/in s3://b/out --ray
    """
    from rwkv_cli import settings
    from rwkv_cli.cli.batch.dataset import Cluster, run
    from rwkv_cli.cli.prompt import parse_stops
    from rwkv_cli.datasets.job import Job
    from rwkv_cli.datasets.run import Wanted

    if raw and template:
        raise UsageError("give either --raw or --template, not both")
    is_on_ray = ray or ray_address is not None
    if not is_on_ray:
        options.refuse_without("--ray", {"--replicas": replicas, "--gpus": gpus})
    user = settings.load()
    job = Job(
        model=model,
        default_model=user.model,
        device=device,
        threads=threads,
        template=options.parse_template("raw" if raw else template),
        system=options.parse_system(system),
        think=think,
        stops=parse_stops(stop or ()),
        max_tokens=options.limit_of(max_tokens),
        sampling=sampling,
        default_sampling=user.sampling,
        constraint=constraint,
        state=state,
        cache=not no_cache,
        batch_size=batch_size,
    )
    wanted = Wanted(inputs, output, _columns(column, keep_columns, prefix), shard_rows, sampling.get("seed"))
    cluster = Cluster(ray_address, replicas, gpus) if is_on_ray else None
    raise typer.Exit(run(job, wanted, cluster, quiet))


def _columns(given: Sequence[str] | None, keep: str | None, prefix: str) -> Columns:
    from rwkv_cli.datasets.columns import Columns

    mapped = dict[str, str]()
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(
                f"--column is {each[:80]!r}: it must be a field and a column, such as prompt=question"
            )
        mapped[name.strip()] = value
    kept = None if keep is None else tuple(each.strip() for each in keep.split(",") if each.strip())
    return Columns(mapped, kept, prefix)
