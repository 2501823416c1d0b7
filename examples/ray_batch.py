"""Answer prompts on a Ray cluster, or on a local Ray, into Parquet files.

pip install '.[ray]'
python examples/ray_batch.py [MODEL]
"""

import sys
from pathlib import Path

import ray

from rwkv_cli.ray import Generator, replicas

ray.init()  # the cluster of RAY_ADDRESS, or a local one
questions = ray.data.from_items(
    [{"id": i, "prompt": f"Once upon a time, there were {i} little foxes"} for i in range(2, 10)]
)  # or ray.data.read_parquet("s3://bucket/questions")
answered = questions.map_batches(
    Generator,
    fn_constructor_kwargs={"model": sys.argv[1] if sys.argv[1:] else None, "max_tokens": 20, "seed": 1},
    batch_format="pyarrow",
    batch_size=4,  # rows; for real work many times what is answered together, such as 1024
    num_cpus=1,  # a replica's threads
    num_gpus=0,  # 1 for a model on a GPU
    compute=replicas(2),
)
answers = str(Path("answers").absolute())  # a folder that all nodes have, such as s3://bucket/answers
answered.write_parquet(answers)

for row in sorted(ray.data.read_parquet(answers).take_all(), key=lambda row: row["id"]):
    print(f"{row['id']}. {row['prompt']}{row['text']}")
