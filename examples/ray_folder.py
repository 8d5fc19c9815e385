"""Embeds a folder of Parquet files into another, with Ray Data: on this machine, or on the cluster of RAY_ADDRESS.

    python examples/ray_folder.py IN_FOLDER OUT_FOLDER [MODEL]

The files have a column `id`, different in every row, and a column `text`. Stopped and started again, it goes on with
the rows that are not in OUT_FOLDER.
"""

import sys

import ray
from ray.data.checkpoint import CheckpointConfig

from gguf_embed.integrations.ray_data import embed_dataset

source, target, *model = sys.argv[1:]
context = ray.data.DataContext.get_current()
context.checkpoint_config = CheckpointConfig("id", f"{target}.done", delete_checkpoint_on_success=False)
rows = embed_dataset(ray.data.read_parquet(source), *model)
rows.write_parquet(target)
