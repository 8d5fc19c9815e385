"""Whether a file gives on this machine the vectors that its model's authors meant: check after check, each a value.

It must not know the command line or how findings are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.checks import (
    Check,
    Sample,
    check_agreement,
    check_batches,
    check_distinct,
    check_finite,
    check_flash_attn,
    check_tokens,
    drift_bound,
)
from gguf_embed.engine.session import Session
from gguf_embed.errors import GGUFEmbedError, ModelLoadError, TextTooLongError
from gguf_embed.fit.cores import usable_cores
from gguf_embed.model import LazyModel
from gguf_embed.models.specs import Golden
from gguf_embed.models.wheel import wheel_model_path
from gguf_embed.opening import Opened
from gguf_embed.quality.filechecks import GivenFile, check_file
from gguf_embed.selection import Overrides
from gguf_embed.vectors import l2_normalize

__all__ = ["Verification"]

# On these, or on texts like them, models gave NaN, zeros or one vector for all.
# Source: research/pain.md 3, 10, 33: llama.cpp issues 26044 (from 64 tokens on), 29216; ollama issues 12921, 15609.
_TRIGGERS = (
    "The capital of China is Beijing.",
    'import { useState } from "react";',
    "importance of being earnest",
    "importing modules in Python",
    "importance",
    "def f(x):\n    return x ** 2  # 3.14159 -42 1e-9 0xFF",
    "ALL OF THIS IS IN CAPITALS",
    "Café, naïve, façade, Ångström, Zażółć gęślą jaźń",
    "北京是中国的首都。",
    "日本語の文章と한국어 문장",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया",
    "🙂🚀 emoji 👩‍👩‍👧‍👦",
    "a\u200bb\u00adc \u202e right to left",
    "",
    "   ",
    "1234567890 1,000,000 007",
    "word " * 62,
    "word " * 127,
    "The quick brown fox jumps over the lazy dog. " * 45,
)
_LONG_ON_DEVICES = "The quick brown fox jumps over the lazy dog. " * 200  # about 2,000 tokens
# Two ways of one decode whose matrices have the same shapes agree to the last bits. Source: engine.canary.
_HEAD_COSINE, _N_HEAD_TOKENS = 0.9999, 64
# A device computes in another precision and order than the CPU. Source: research/pain.md 3 and 17; not measured here.
_DEVICE_COSINE = 0.99
# A lost EOS moved a known score by 0.106, the coarsest quantization of ours by 0.029. Source: research/models.md 1.4.
_SCORE_LOST = 0.1
_BLOB = re.compile(r"[0-9a-f]{64}")


class Verification:
    """One file on this machine, checked.

    Args:
        model: what is to be checked; closed by whoever made it.
        overrides: what it was told of pooling and EOS.
        expects: the fingerprint that full unit vectors are to have; None for any.
        n_threads: for reading the file's numbers; None for all cores.

    Attributes:
        path: of the file, None before the first check.
        opened: what was loaded, None where it could not be.
    """

    def __init__(
        self, model: LazyModel, *, overrides: Overrides, expects: str | None = None, n_threads: int | None = None
    ) -> None:
        self._model, self._overrides, self._expects = model, overrides, expects
        self._n_threads = n_threads or usable_cores()
        self.path: Path | None = None
        self.opened: Opened | None = None

    def checks(self) -> Iterator[Check]:
        """Check the file, then the model as it runs, the quick things first.

        Raises:
            GGUFEmbedError: there is no file to check.
        """
        self.path = self._find()
        is_readable = True
        for check in check_file(self._given(self.path)):
            is_readable = is_readable and not (check.name == "file" and check.state == "fault")
            yield check
        if not is_readable:
            return
        try:
            session, self.opened = self._model.open()
        except GGUFEmbedError as error:
            yield Check(name="loads", state="fault", words=str(error))
            return
        yield self._loaded(self.opened)
        if isinstance(session, Session):
            yield from self._behaviour(session, self.opened)
        if self._expects is not None:
            yield self._fingerprint(self._expects)

    def _find(self) -> Path:
        if (path := self._model.path) is not None:
            return path
        try:
            return self._model.fetch()
        except ModelLoadError as error:
            if error.path.is_file():
                return error.path
            raise

    def _given(self, path: Path) -> GivenFile:
        blob, spec = path.resolve().name, self._model.spec
        made_sha256 = None
        if spec is not None and spec.wheel is not None:
            made = wheel_model_path(spec.wheel, spec.model_id, self._model.config.cache_dir)
            made_sha256 = spec.wheel.gguf_sha256 if made.name == path.name else None
        return GivenFile(
            path=path,
            spec=spec,
            sha256=blob if _BLOB.fullmatch(blob) else None,
            made_sha256=made_sha256,
            pooling_type=self._overrides.pooling_type,
            add_eos=self._overrides.add_eos,
            n_threads=self._n_threads,
        )

    @staticmethod
    def _loaded(opened: Opened) -> Check:
        plan = opened.selection.plan
        where = " and ".join(opened.layout.devices) or "the CPU"
        if plan.placement == "partial":
            where = f"{where} and the CPU"
        beside = "" if plan.layout.flash_attn == "auto" else ", without flash attention"
        words = f"on {where}{beside}; texts of up to {opened.max_tokens:,} tokens"
        return Check(name="loads", state="ok", words=words)

    def _behaviour(self, session: Session, opened: Opened) -> Iterator[Check]:
        """Check what a loaded model does."""
        devices = opened.layout.devices
        texts = (*_TRIGGERS, _LONG_ON_DEVICES) if devices else _TRIGGERS
        yield check_tokens(session, _TRIGGERS)
        finite, sample = check_finite(session, texts)
        yield finite
        if sample is None:
            return
        drift = drift_bound(opened.selection.plan.facts.quant, on_device=bool(devices))
        yield check_distinct(sample)
        yield check_batches(session, sample, bound=drift)
        if opened.selection.plan.facts.is_decoder:
            yield self._head(session, sample)
        yield check_flash_attn(session, sample, bound=drift)
        bound = min(drift, _DEVICE_COSINE) if devices else drift
        where = devices[0] if devices else "the fast kernels"
        yield check_agreement(
            "GPU and CPU" if devices else "plain CPU", sample, session.embed_plainly, bound=bound,
            words=f"{where} and the CPU in float32, without flash attention", fault=f"{where} gives other vectors",
        )  # fmt: skip
        yield self._golden(session, opened)

    @staticmethod
    def _head(session: Session, sample: Sample) -> Check:
        name = "head"
        if not session.layout.skips_head:
            return Check(name=name, state="ok", words="the vocabulary projection is computed, and nothing is skipped")
        part = sample.where(np.array([len(ids) <= _N_HEAD_TOKENS for ids in sample.tokens]))
        return check_agreement(
            name, part, lambda tokens: session.embed_otherwise(tokens, skips_head=False), bound=_HEAD_COSINE,
            words="skipped and computed", fault="skipping the vocabulary projection changes vectors",
        )  # fmt: skip

    def _golden(self, session: Session, opened: Opened) -> Check:
        """Hold the cosines of the model card's example against the published ones."""
        spec = self._model.spec
        if spec is None or spec.golden is None:
            return Check(name="known scores", state="skipped", words="none are known for this model")
        golden, prompts = spec.golden, spec.prompts
        try:
            scores = (
                _unit_rows(session, golden.queries, prompts.query)
                @ _unit_rows(session, golden.documents, prompts.document).T
            )
        except TextTooLongError as error:
            return Check(name="known scores", state="skipped", words=str(error))
        except GGUFEmbedError as error:
            return Check(name="known scores", state="fault", words=str(error))
        return judge_scores(golden, scores.tolist(), opened.selection.plan.facts.quant or opened.selection.plan.quant)

    def _fingerprint(self, expected: str) -> Check:
        actual = self._model.fingerprint(self._model.n_embd)
        if actual == expected:
            return Check(name="fingerprint", state="ok", words=f"{actual}, as expected")
        words = f"{actual}, and {expected} is expected: these vectors do not compare with those"
        return Check(name="fingerprint", state="fault", words=words)


def judge_scores(golden: Golden, scores: list[list[float]], quant: str) -> Check:
    """Say how near scores are to the known ones.

    Args:
        golden: what is known.
        scores: a row per query, a column per document.
        quant: of the file.
    """
    name, tolerance = "known scores", dict(golden.tolerances).get(quant)
    off = float(np.abs(np.asarray(scores) - np.asarray(golden.scores)).max())
    same_order = all(
        int(np.argmax(ours)) == int(np.argmax(theirs)) for ours, theirs in zip(scores, golden.scores, strict=True)
    )
    if not same_order or off > _SCORE_LOST:
        beside = "" if same_order else ", and the right answer does not come first"
        words = f"off by {off:.4f} at the most{beside}: pooling, EOS or prompt are wrong"
        return Check(name=name, state="fault", words=words, figure=off, bound=tolerance)
    if tolerance is None:
        words = f"off by {off:.4f} at the most; how far {quant} may be off is not measured, so this proves little"
        return Check(name=name, state="unmeasured", words=words, figure=off)
    if off > tolerance:
        words = f"off by {off:.4f}, and {quant} was measured to be off by less than {tolerance:g}"
        return Check(name=name, state="fault", words=words, figure=off, bound=tolerance)
    words = f"off by {off:.4f} at the most; {tolerance:g} is allowed for {quant}"
    return Check(name=name, state="ok", words=words, figure=off, bound=tolerance)


def _unit_rows(session: Session, texts: tuple[str, ...], prompt: str) -> NDArray[np.float32]:
    tokens, _ = session.tokenize(texts, prefix=prompt)
    return l2_normalize(session.embed(tokens, prompt=prompt))
