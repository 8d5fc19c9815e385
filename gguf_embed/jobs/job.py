"""A job: every text of a source to a file, in bounded memory, going on where it was interrupted.

It must not know the command line, formats of inputs or how a model is run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gguf_embed import __version__
from gguf_embed.embedder import Embedder
from gguf_embed.encoding import EncodeOptions
from gguf_embed.errors import GGUFEmbedError, JobError
from gguf_embed.jobs.outputs import Output, write_output
from gguf_embed.jobs.records import BadRecord, Record
from gguf_embed.jobs.rows import Row, RowBlock
from gguf_embed.jobs.spool import Spool
from gguf_embed.prompts import resolve_prompt
from gguf_embed.stream.cache import VectorCache
from gguf_embed.stream.chunking import Chunking
from gguf_embed.stream.results import Block, StreamResult

__all__ = ["Job", "JobOptions", "JobStoppedError", "Observer", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a job turns texts into rows.

    Attributes:
        encode: how texts become vectors; their length is the Embedder's affair, and their precision the output's.
        chunking: what becomes of long texts.
        cache: rows of before, None for none.
        skips_bad: go on after a text that cannot be read or embedded; else it ends the job.
        with_text: keep texts in the rows, or their SHA-256 instead.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    chunking: Chunking = field(default_factory=Chunking)
    cache: VectorCache | None = None
    skips_bad: bool = False
    with_text: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        n_records: texts read, bad ones included.
        n_rows: vectors, those of an earlier run included.
        n_failed: texts or chunks without one.
        n_truncated: texts of this run that were cut.
        n_resumed: rows that an earlier run had made.
        n_kept: rows that the next run would not make again.
        n_cached: rows of this run that came from the cache.
        n_decoded: texts and chunks that were decoded in this run.
        n_tokens: that were decoded in this run.
        seconds: of this run.
    """

    n_records: int = 0
    n_rows: int = 0
    n_failed: int = 0
    n_truncated: int = 0
    n_resumed: int = 0
    n_kept: int = 0
    n_cached: int = 0
    n_decoded: int = 0
    n_tokens: int = 0
    seconds: float = 0.0


class Observer(Protocol):
    """Who is told of a job."""

    def on_progress(self, progress: Progress) -> None:
        """Something was decoded or written."""

    def on_bad(self, place: str, error: GGUFEmbedError) -> None:
        """A text was left out."""


class JobStoppedError(KeyboardInterrupt):
    """The job was asked to stop, and what is done is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marked:
    """A record, and how far the input is after it."""

    id: Any
    text: str
    kind: str
    place: str
    n_records: int
    chain: str


class Job:
    """Texts of one source on their way to rows.

    Args:
        model: what embeds.
        source: records in the same order whenever it is read.
        options: how.
        observer: who is told.
        should_stop: asked after each block; True ends the job there.
        clock: stands in for time.monotonic, for tests.
    """

    def __init__(
        self,
        model: Embedder,
        source: Iterable[Record | BadRecord],
        options: JobOptions,
        *,
        observer: Observer,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model, self._source, self._options = model, source, options
        self._observer, self._should_stop, self._clock = observer, should_stop, clock
        self._begun_s = clock()
        self._progress = Progress()
        self._n_bad = self._n_failed = self._n_records = 0
        self._chain = ""
        self._folder = Path()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return dataclasses.replace(
            self._progress, n_records=self._n_records, n_failed=self._n_failed + self._n_bad,
            seconds=self._clock() - self._begun_s,
        )  # fmt: skip

    def run(self, path: Path, output: Output, *, source_identity: Any, restarts: bool = False) -> Progress:
        """Write all rows to a file; after an interruption the same call goes on where that came.

        Args:
            path: of the file.
            output: how it is written.
            source_identity: what tells this input from another, for JSON.
            restarts: throw away what an earlier run left unfinished.

        Raises:
            JobError: another process writes there, or what was left there is of another job or input.
            JobStoppedError: it was asked to stop.
            StorageError: the file cannot be written.
            InputError: a text is bad, and bad ones are not skipped.
        """
        about = self.about()
        identity = {"gguf_embed": __version__, **about, "source": source_identity} | self._longest()
        identity["with_text"] = self._options.with_text
        with Spool(path.resolve(), dim=self._model.dim, identity=identity, restarts=restarts) as spool:
            self._folder = spool.folder
            self._fill(spool)
            write_output(output, spool, about, has_gaps=self.progress.n_failed > 0)
            spool.remove()
        return self.progress

    def rows(self) -> Iterator[RowBlock]:
        """Make all rows without keeping them."""
        for block in self._blocks(self._texts(n_done=0, chain="")):
            good = [one for one in block.results if one.vector is not None]
            if good:
                yield RowBlock(rows=tuple(self._row(one) for one in good), vectors=block.vectors())
            if self._should_stop():
                raise JobStoppedError

    def about(self) -> dict[str, Any]:
        """Tell what made the rows, for whoever reads them; fetches the model's file and does not load it."""
        encode, chunking = self._options.encode, self._options.chunking
        prompts = self._model.prompts
        return {
            "model": self._model.model_id,
            "quant": self._model.plan.quant,
            "kv_type": self._model.plan.layout.kv_type,
            "fingerprint": self._model.fingerprint_of(encode),
            "dim": self._model.dim,
            "normalized": encode.normalize_embeddings,
            "prompt": resolve_prompt(prompts, prompt_name=encode.prompt_name, prompt=encode.prompt, task=encode.task),
            "long_texts": "truncate" if encode.truncate == "end" else chunking.long,
            "chunk_tokens": chunking.n_tokens,
            "chunk_overlap": chunking.n_overlap,
        }

    def _longest(self) -> dict[str, int]:
        """What else the rows hang on where long texts are cut at the longest that fits."""
        chunking = self._options.chunking
        cuts = chunking.long != "error" or self._options.encode.truncate == "end"
        return {"longest_text": self._model.max_seq_length} if cuts and chunking.n_tokens is None else {}

    # Reading

    def _texts(self, *, n_done: int, chain: str) -> Iterator[_Marked]:
        """Read texts, after those that are done already, which are compared with what they were."""
        for record in self._source:
            self._n_records += 1
            self._chain = hashlib.sha256(
                f"{self._chain}\0{_words(record)}".encode("utf-8", "surrogatepass")
            ).hexdigest()
            if self._n_records == n_done and self._chain != chain:
                break
            self._n_bad += isinstance(record, BadRecord)
            if self._n_records <= n_done:
                continue
            if isinstance(record, BadRecord):
                self._left_out(record.place, record.error)
            else:
                yield _Marked(
                    id=record.id, text=record.text, kind=record.kind, place=record.place,
                    n_records=self._n_records, chain=self._chain,
                )  # fmt: skip
        if self._n_records < n_done or (self._n_records == n_done and self._chain != chain):
            raise JobError(
                f"the input is not the one that this job began with: it differs within its first {n_done:,} texts. "
                "Begin again with --restart; what is in the cache is not computed twice",
                path=self._folder,
            )

    def _left_out(self, place: str, error: GGUFEmbedError) -> None:
        if not self._options.skips_bad:
            raise error
        self._observer.on_bad(place, error)

    # Embedding

    def _fill(self, spool: Spool) -> None:
        """Read, embed and append until the input ends, committing whenever all of a text is there."""
        before = spool.checkpoint
        self._n_failed = before.n_failed
        n_rows = before.n_rows
        self._progress = dataclasses.replace(self._progress, n_resumed=n_rows, n_kept=n_rows, n_rows=n_rows)
        for block in self._blocks(self._texts(n_done=before.n_records, chain=before.chain)):
            good = [one for one in block.results if one.vector is not None]
            if good:
                spool.append([self._row(one) for one in good], block.vectors())
            last = block.last
            if block.is_whole and isinstance(last, _Marked):
                spool.commit(n_records=last.n_records, chain=last.chain, n_failed=self._n_failed)
                self._progress = dataclasses.replace(self._progress, n_kept=spool.checkpoint.n_rows)
                if self._should_stop():
                    raise JobStoppedError
        spool.commit(n_records=self._n_records, chain=self._chain, n_failed=self._n_failed)

    def _blocks(self, texts: Iterator[_Marked]) -> Iterator[Block]:
        encode = dataclasses.replace(self._options.encode, precision="float32")
        blocks = self._model.stream(
            texts, encode, chunking=self._options.chunking, cache=self._options.cache or False, on_batch=self._decoded
        )
        for block in blocks:
            for one in block.results:
                if one.error is not None:
                    self._left_out(one.place, one.error)
                    self._n_failed += 1
            good, now = [one for one in block.results if one.vector is not None], self._progress
            self._progress = dataclasses.replace(
                now,
                n_rows=now.n_rows + len(good),
                n_cached=now.n_cached + sum(one.is_cached for one in good),
                n_truncated=now.n_truncated + sum(one.truncated for one in good),
            )
            self._observer.on_progress(self.progress)
            yield block

    def _row(self, one: StreamResult) -> Row:
        with_text = self._options.with_text
        return Row(
            id=one.id,
            text=one.text if with_text else None,
            text_sha256=None if with_text else hashlib.sha256(one.text.encode()).hexdigest(),
            span=one.span,
            truncated=one.truncated,
            place=one.place,
        )

    def _decoded(self, n_texts: int, n_tokens: int) -> None:
        now = self._progress
        self._progress = dataclasses.replace(now, n_decoded=now.n_decoded + n_texts, n_tokens=now.n_tokens + n_tokens)
        self._observer.on_progress(self.progress)


def _words(record: Record | BadRecord) -> str:
    """What makes a record the same."""
    if isinstance(record, BadRecord):
        return f"bad\0{record.place}"
    return f"{json.dumps(record.id, default=str)}\0{record.text}"
