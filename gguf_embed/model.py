"""One model that is planned, fetched and loaded when it is needed, and not before.

It joins catalog, selection and opening; it must not know texts or vectors.
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable
from pathlib import Path

from gguf_embed.config import load_config
from gguf_embed.encoding import EncodeOptions
from gguf_embed.engine.session import Session
from gguf_embed.engine.worker import Worker
from gguf_embed.errors import ClosedError, DoesNotFitError, FingerprintError, ModelLoadError
from gguf_embed.fingerprints import checked_fingerprint
from gguf_embed.fit.planner import Limits
from gguf_embed.models.catalog import Catalog
from gguf_embed.models.specs import ModelSpec
from gguf_embed.opening import Opened, Wish, open_session, open_worker
from gguf_embed.prompts import PromptSet
from gguf_embed.selection import Overrides, Selection, recipe, row_identity, select

__all__ = ["LazyModel"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


class LazyModel:
    """A reference and all that comes of it; safe to share between threads.

    Args:
        text: a model reference, None for the configured one.
        limits: what the plan may use; what they leave open is as configured.
        prefer: which quantizations come first.
        overrides: what the caller knows better than the file.
        in_process: whether it runs in this process; else in a child.
        expects: the fingerprint that all vectors are to have, None for any.

    Attributes:
        text: the reference.
        spec: what the registry knows of it, None where it does not.
        path: of the file, where the reference is one.
        config: what holds for this user.

    Raises:
        UnknownModelError: nothing answers to `text`.
        UnknownQuantError: the model is known, the quantization is not.
        ConfigError: a setting cannot be used.
        ValueError: `expects` is no fingerprint.
    """

    def __init__(
        self,
        text: str | None,
        *,
        limits: Limits,
        prefer: str,
        overrides: Overrides,
        in_process: bool,
        expects: str | None = None,
    ) -> None:
        self.config = load_config()
        self.text = self.config.model if text is None else text
        self._catalog = Catalog(self.config)
        self._limits, self._prefer, self._overrides = limits.over(self.config), prefer, overrides
        self._in_process = in_process
        self._expects = None if expects is None else checked_fingerprint(expects)
        self._checked: list[tuple[int, EncodeOptions]] = []  # lengths and ways that were expected
        reference = self._catalog.parse(self.text)
        self.spec: ModelSpec | None = reference.spec
        self.path = reference.path
        self._lock = threading.RLock()
        self._selection: Selection | None = None
        self._fetched: Path | None = None
        self._identity: str | None = None
        self._seen: dict[Path, tuple[int, int, int]] = {}  # inode, size and time of files that were looked at
        self._opened: Opened | None = None
        self._session: Session | Worker | None = None
        self._is_closed = self._has_warned = self._is_as_fetched = False

    @property
    def prompts(self) -> PromptSet:
        """The prompts that the model was trained with; empty where the registry does not know it."""
        return self.spec.prompts if self.spec is not None else PromptSet()

    @property
    def n_embd(self) -> int:
        """Components of the model's full vectors."""
        return self.spec.n_embd if self.spec is not None else self.selection().plan.facts.n_embd

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, special ones included; loads the model."""
        return self.open()[1].max_tokens

    def selection(self) -> Selection:
        """Choose the file and the plan that it runs by."""
        with self._lock:
            if self._selection is None:
                resolved = self._catalog.resolve(self.text, prefer=self._prefer)
                self._selection = select(self._catalog, resolved, limits=self._limits, overrides=self._overrides)
            return self._selection

    def fetch(self, on_progress: OnProgress | None = None) -> Path:
        """Fetch the chosen file without loading it.

        Args:
            on_progress: called while downloading, with bytes present and bytes in all.
        """
        with self._lock:
            self._check()
            if self._opened is not None:
                return self._opened.path
            if self._fetched is None:
                selection = self.selection()
                self._fetched = self._catalog.fetch(selection.resolved, selection.source, on_progress=on_progress)
                self._check_unchanged(self._fetched)
            return self._fetched

    def open(self, on_progress: OnProgress | None = None) -> tuple[Session | Worker, Opened]:
        """Plan, fetch and load; the second call returns what the first one opened.

        Args:
            on_progress: as for `fetch`.

        Raises:
            ClosedError: after close().
            GGUFEmbedError: whatever stands in the way.
        """
        with self._lock:
            self._check()
            if self._session is None or self._opened is None:
                wish = Wish(
                    config=self.config, text=self.text, prefer=self._prefer, limits=self._limits,
                    overrides=self._overrides,
                )  # fmt: skip
                if self._in_process:
                    self._session, self._opened = open_session(
                        wish, on_progress, catalog=self._catalog, selection=self.selection()
                    )
                else:
                    self._session, self._opened = open_worker(wish, on_progress)
                self._selection = self._opened.selection
                self._check_unchanged(self._opened.path)
            return self._session, self._opened

    def fingerprint(self, dim: int, options: EncodeOptions | None = None) -> str:
        """Tell vectors of `dim` components apart that do not compare; fetches the file, and does not load it."""
        path, how = self.fetch(), options or EncodeOptions()
        made = recipe(self.selection(), path, dim=dim, normalize=how.normalize_embeddings, prompt=how.prompt)
        return made.fingerprint

    def check_fingerprint(self, dim: int, options: EncodeOptions) -> None:
        """Refuse to give vectors that are not the expected ones; fetches the file where some are expected.

        Raises:
            FingerprintError: they would not compare with those of before.
        """
        if self._expects is None:
            return
        actual = self.fingerprint(dim, options)
        if actual != self._expects:
            raise FingerprintError(
                f"{self.text} gives vectors with fingerprint {actual}, and {self._expects} is expected: the two do not "
                "compare. Name the quantization and the dimension of before, or embed all anew. What a fingerprint "
                f"stands for: gguf-embed show {shlex.quote(self.text)} --json",
                expected=self._expects,
                actual=actual,
            )
        if (dim, options) not in self._checked:
            self._checked.append((dim, options))

    def row_identity(self) -> str:
        """Tell raw rows apart that are not the same; fetches the file, and does not load it.

        Raises:
            ModelLoadError: the file is not the one that was read before.
        """
        with self._lock:
            path = self.fetch()
            self._check_unchanged(path)
            self._identity = self._identity or row_identity(self.selection(), path, overrides=self._overrides)
            return self._identity

    def open_as_fetched(self) -> Session | Worker:
        """Load the model, and refuse any but the one whose rows were used already.

        Raises:
            DoesNotFitError: another quantization or KV type had to be loaded, whose rows do not compare.
        FingerprintError: it is not the expected one.
            ModelLoadError: the file has changed since.
        """
        session, opened = self.open()
        if self._is_as_fetched:
            return session
        for dim, options in self._checked:  # what was loaded may be less than what was planned
            self.check_fingerprint(dim, options)
        self._check_unchanged(opened.path)
        now = row_identity(opened.selection, opened.path, overrides=self._overrides)
        if self._identity not in (None, now):
            plan = opened.selection.plan
            raise DoesNotFitError(
                f"what was planned does not fit after all, and {opened.path.name} with KV type "
                f"{plan.layout.kv_type}, which does, gives other vectors; name it to use it: "
                f"-m {opened.selection.resolved.model_id}:{plan.quant} --kv-type {plan.layout.kv_type}",
                required_bytes=plan.required_bytes,
                available_bytes=plan.available_bytes,
            )
        self._is_as_fetched = True  # it is asked for with every text that is counted
        return session

    def _check_unchanged(self, path: Path) -> None:
        """Refuse a file that was replaced after it was first looked at: the weights in memory are the old one's."""
        facts = path.stat()
        now = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if self._seen.setdefault(path, now) != now:
            raise ModelLoadError(f"{path} has changed since this Embedder first read it; make a new one", path=path)

    def warn_of_missing_prompt(self, options: EncodeOptions) -> None:
        """Say once that queries go without a prompt, where the registry knows none."""
        if self.spec is None and options.prompt_name == "query" and options.prompt is None and not self._has_warned:
            self._has_warned = True
            logger.warning("no query prompt is known for %s; if its card has one, pass it as prompt", self.text)

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError(f"the Embedder of {self.text!r} was closed; make a new one")

    def close(self) -> None:
        """Free the model; closing twice is allowed, use after it raises ClosedError."""
        with self._lock:
            self._is_closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()
