"""RWKV-7 on Ray clusters, with the extra `ray`; nothing else in this program imports Ray.

generator  `Generator`, for `ray.data.Dataset.map_batches`; `replicas` of it
serving    `serve_app`: the server as a Ray Serve application
shards     `rwkv batch --ray`
cluster    the connection, and what of the cluster a replica gets
"""

from rwkv_cli.ray.cluster import replicas
from rwkv_cli.ray.generator import Generator
from rwkv_cli.ray.serving import serve_app

__all__ = ["Generator", "replicas", "serve_app"]
