"""`serve_app`: the server of `rwkv serve` as an application of Ray Serve, with as many replicas as wanted."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rwkv_cli.ray import cluster
from rwkv_cli.reporting import Reporter
from rwkv_cli.server.app import make_app
from rwkv_cli.server.settings import ServerSettings

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette

log = logging.getLogger("ray.serve")

_MOST_ONGOING = 128
"""Requests that Ray hands to a replica at the same time; those without a slot wait in the replica's own queue."""


def serve_app(
    settings: ServerSettings | None = None,
    *,
    num_replicas: int | str = 1,
    num_cpus: int = 1,
    num_gpus: float = 0,
    **options: Any,
) -> Application:
    """The routes of `rwkv serve` as an application for `serve.run`.

    Each replica loads the models itself, and has `num_cpus` threads and `num_gpus` GPUs; `num_replicas` may be "auto".
    `settings` are those of the server; its host and port are those of Ray Serve. `options` are others of
    `serve.deployment`. A conversation that comes to another replica is read again there, unless both are on one node,
    whose disk keeps states. Raises UsageError where Ray is not installed.
    """
    cluster.check_installed()
    from ray import serve

    given = settings or ServerSettings()
    device = (
        "auto" if given.device == "auto" and num_gpus else "cpu" if given.device == "auto" else given.device
    )
    chosen = replace(given, threads=given.threads or num_cpus, device=device)

    def build() -> Starlette:
        return make_app(chosen, Reporter(), log.info)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="rwkv",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        **{"max_ongoing_requests": _MOST_ONGOING, **options},
    )
    application: Application = deployment.bind()
    return application
