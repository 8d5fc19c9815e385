"""Ray Data: a column of texts to a column of vectors, on as many machines as there are; one model an actor.

It must not know where rows come from or go, nor how many bytes a model needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions
from gguf_embed.fit.planner import Limits
from gguf_embed.integrations.ray_survey import Question, import_ray, survey_cluster
from gguf_embed.integrations.shared import configured_model
from gguf_embed.stream.results import PlainText

__all__ = ["EmbedActor", "embed_dataset"]


class EmbedActor:
    """One model, which turns batches of texts into batches of vectors; Ray Data makes one in each actor.

    Args:
        model: a model reference.
        column: where the texts are.
        options: how they become vectors, float32 or float16.
        limits: memory, threads and longest text of this actor.
        expect_fingerprint: of the vectors that all actors are to give.

    Raises:
        ValueError: an option cannot be used.
        GGUFEmbedError: the model cannot be had or loaded, or gives other vectors.
    """

    def __init__(
        self, model: str, *, column: str = "text", options: EncodeOptions | None = None, limits: Limits | None = None,
        expect_fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        self._column, self._options = column, _checked(options or EncodeOptions(), "document")
        self._embedder = Embedder(model, limits=limits, expect_fingerprint=expect_fingerprint)
        self._embedder.load()
        self._dim = self._options.truncate_dim or self._embedder.dim

    def __call__(self, table: Any) -> Any:
        """Embed one batch.

        Args:
            table: a pyarrow.Table.

        Returns:
            It, with the columns embedding (a fixed-size list) and error; in each row one of them is null.

        Raises:
            ValueError: the column is missing or holds no texts, or a new one is there already.
            GGUFEmbedError: what no single text is to blame for.
        """
        import pyarrow as pa  # noqa: PLC0415 - an extra

        rows = np.zeros((len(table), self._dim), dtype=self._options.precision)
        errors: list[str | None] = [None] * len(table)
        for block in self._embedder.stream(_texts(table, self._column, errors), self._options):
            for one in block.results:
                if one.vector is None:
                    errors[one.id] = f"{type(one.error).__name__}: {one.error}"
                else:
                    rows[one.id] = one.vector
        failed = pa.array([error is not None for error in errors], pa.bool_())
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), self._dim, mask=failed)
        return table.append_column("embedding", embedding).append_column("error", pa.array(errors, pa.string()))


def embed_dataset(  # noqa: PLR0913 - what a job is told
    dataset: Any, model: str | None = None, *, column: str = "text", kind: str = "document",
    options: EncodeOptions | None = None, limits: Limits | None = None, n_actors: int | None = None,
    batch_size: int = 1024, plan_on: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Add the vectors of a column to a Dataset: planned and fetched now, embedded when the Dataset is used.

    One machine of the cluster plans, for all: quantization, fingerprint and longest text are the same for every actor.

    Args:
        dataset: of Ray Data.
        model: a model reference; None takes the one that is configured here. A path is the same on all machines.
        column: where the texts are.
        kind: "document" or "query", the model's prompt that goes before the texts where options name none.
        options: how texts become vectors, float32 or float16.
        limits: of each actor; n_ctx is its longest text, where not given what a plan has in flight.
        n_actors: in all; None for one on each GPU, else for what the cores and the memory of the machines hold.
        batch_size: rows that an actor takes at a time.
        plan_on: Ray's options for the task that plans, such as {"num_gpus": 2}; None for one GPU where there are any.

    Returns:
        The Dataset with the columns embedding and error, as EmbedActor gives them.

    Raises:
        MissingExtraError: Ray is not installed.
        DoesNotFitError: nothing fits, or not so many actors.
        GGUFEmbedError: the model cannot be had.
    """
    ray, options = import_ray(), _checked(options or EncodeOptions(), kind)
    question = Question(
        model=model or configured_model(), options=options, limits=limits or Limits(), n_actors=n_actors,
        n_spare_cpus=1 if dataset.context.checkpoint_config is None else 2,  # what is done is left out by an actor too
    )  # fmt: skip
    survey = survey_cluster(question, plan_on)
    # Ray would make one block of many small files, and one block goes to one actor.
    return dataset.repartition(target_num_rows_per_block=batch_size).map_batches(
        EmbedActor,
        fn_constructor_kwargs={"column": column, "options": options} | survey.told,
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=survey.n_actors),
        num_cpus=survey.placement.n_cpus,
        num_gpus=survey.placement.n_gpus or None,
        memory=survey.placement.memory_bytes,
        udf_modifying_row_count=False,
    )


def _checked(options: EncodeOptions, kind: str) -> EncodeOptions:
    """Fill in the prompt that the kind of text has."""
    if kind not in ("document", "query"):
        raise ValueError(f"kind is {kind!r}; it is 'document' or 'query'")
    if options.precision not in ("float32", "float16"):
        raise ValueError(f"precision is {options.precision!r}; here it is 'float32' or 'float16'")
    return dataclasses.replace(options, prompt_name=options.prompt_name or kind)


def _texts(table: Any, column: str, errors: list[str | None]) -> Iterator[PlainText]:
    """Take the texts of a batch; of a row without one, write down why."""
    if column not in (names := table.column_names):
        raise ValueError(f"there is no column {column!r}; there are {', '.join(names)}")
    if taken := {"embedding", "error"} & set(names):
        raise ValueError(f"there is a column {taken.pop()!r} already, and it would come twice; rename or drop it")
    for index, scalar in enumerate(table[column]):
        try:
            text = scalar.as_py()
        except UnicodeDecodeError as error:
            errors[index] = f"InvalidTextError: {error}"
            continue
        if isinstance(text, str):
            yield PlainText(id=index, text=text, place="the text")
        elif text is None:
            errors[index] = "InvalidTextError: there is no text"
        else:
            raise ValueError(f"the column {column!r} holds {table.schema.field(column).type}, and no texts")
