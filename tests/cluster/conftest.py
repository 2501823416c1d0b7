"""A Ray cluster on this machine, of two nodes with a core each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # otherwise a token is written to the home folder
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # otherwise it is 15, and other programs go first


@pytest.fixture(scope="session")
def cluster(compiled_kernels: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: ARG001
    """`cluster.address` is the address; the second node is `cluster.second`."""
    from ray.cluster_utils import Cluster

    os.environ["RWKV_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))  # of what runs on the nodes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    yield found
    found.shutdown()
