"""Whether a loaded model behaves as an embedding model must: tokens end right, rows are sound and stay the same.

Each check asks a session and returns what it found. It must not know model names, files on the hub or what to do then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_embed.engine.session import Session
from gguf_embed.engine.tokenizing import Tokens
from gguf_embed.errors import BackendError
from gguf_embed.vectors import l2_normalize, similarity_pairwise

__all__ = [
    "FLASH_ATTN", "STATES", "Check", "Sample", "check_agreement", "check_batches", "check_distinct", "check_finite",
    "check_flash_attn", "check_tokens", "drift_bound",
]  # fmt: skip

Float32Matrix = NDArray[np.float32]

STATES = ("ok", "mended", "note", "unmeasured", "skipped", "fault")
# The least cosine of one text with itself in another batch, or without flash attention. Quantized kernels round the
# activations too, so that a last bit becomes a step of theirs; a text that sees its neighbours is far below.
# Source: 20 texts, all-MiniLM-L6-v2 and a synthetic Qwen3: F16 and F32 0.999999, Q8_0 0.99935, Q4_K_M 0.9986, Q4_K_S
# 0.9984, Q3_K_M 0.9988 at the least, 2 cores with AVX-512, 2026-11-22; 0.9976 was seen elsewhere (research/models.md
# 1.8); texts over parts of a batch 0.976 and less. Devices add in float16, and were not measured here.
_UNQUANTIZED_COSINE, _ON_DEVICE_COSINE, _QUANTIZED_COSINE = 0.9999, 0.999, 0.995
# Rows of texts with nothing in common, where pooling or weights are lost. Source: 1.000000 with tests/broken.py's
# zeroed output_norm, 0.89 at the most in sound models with random weights, 0.51 in all-MiniLM-L6-v2, 2026-11-22.
_SAME_COSINE = 0.99999
FLASH_ATTN = "flash attention"
_N_QUOTED = 33
_CONTROL = "text <|im_start|> [SEP] </s> <|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: in one or two words.
        state: "ok", "mended" (wrong in the file and set right here), "note", "unmeasured" (no figure is known to hold
            it against), "skipped" or "fault".
        words: what was found, for a person.
        figure: the number behind it, None where there is none.
        bound: what the figure is held against.
    """

    name: str
    state: str
    words: str
    figure: float | None = None
    bound: float | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state is {self.state!r}; it is one of {', '.join(STATES)}")


def check_tokens(session: Session, texts: Sequence[str]) -> Check:
    """Check that texts end in exactly one closing token, the empty and the cut one too, and that control tokens that
    are spelt out in a text stay text.
    """  # noqa: D205 - one sentence
    closing = session.closing
    name = "tokens"
    known: list[Tokens] = session.tokenize([*texts, _CONTROL], truncate="end")[0]
    long = session.tokenize(["word " * (session.max_tokens + 10)], truncate="end")[0][0]
    for ids, text in zip([*known, long], [*texts, _CONTROL, "a text that was cut"], strict=True):
        wrong = _wrong_end(ids, closing)
        if wrong:
            return Check(name=name, state="fault", words=f"{_quoted(text)}: {wrong}")
    if session.settings.pooling_type == "cls" and (wrong := _wrong_begin(session, known)):
        return Check(name=name, state="fault", words=wrong)
    control = {token for token, (_, is_control) in session.pieces(set(known[-1][1:-1].tolist())).items() if is_control}
    if control - _unknown_of(session):
        return Check(name=name, state="fault", words="control tokens that a text spells out are obeyed; they are text")
    if not len(closing):
        return Check(name=name, state="ok", words="texts have no closing token, and this pooling needs none")
    piece = session.pieces(closing.tolist())[int(closing[0])][0]
    return Check(name=name, state="ok", words=f"every text ends in one {piece} ({int(closing[0])}), cut ones too")


def _wrong_end(ids: Tokens, closing: Tokens) -> str:
    """Say what is wrong with the end of a text; "" where nothing is."""
    if not len(closing):
        return ""
    if ids[-1] != closing[0]:
        return f"ends in token {int(ids[-1])} and not in {int(closing[0])}"
    return "ends in the closing token twice" if len(ids) > 1 and ids[-2] == closing[0] else ""


def _wrong_begin(session: Session, known: Sequence[Tokens]) -> str:
    """Say what is wrong with the first token, which is the one that is pooled; "" where nothing is."""
    first = {int(ids[0]) for ids in known}
    opening = first.pop()
    if not first and session.pieces([opening])[opening][1]:
        return ""
    return (
        "texts begin with a word and not with CLS or <s>, and the first token is pooled: tokenizer.ggml.add_bos_token "
        "is missing, as in early conversions of XLM-R models; take a newer one"
    )


def _unknown_of(session: Session) -> set[int]:
    """The tokens of a character that no vocabulary has whole: where there is an unknown token, it is among them."""
    return set(session.tokenize(["a \U00013000 a"], truncate="end")[0][0][1:-1].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Texts, and what a session makes of each alone.

    Attributes:
        texts: as given.
        tokens: (n_tokens,) int32 each.
        rows: (n, dim) float32 of unit length.
        is_rescued: (n,) bool, rows that are not the session's own way's, which gave none.
    """

    texts: tuple[str, ...]
    tokens: list[Tokens]
    rows: Float32Matrix
    is_rescued: NDArray[np.bool_]

    def where(self, which: NDArray[np.bool_]) -> Sample:
        """Return some of the texts."""
        places = np.flatnonzero(which).tolist()
        return Sample(
            texts=tuple(self.texts[at] for at in places),
            tokens=[self.tokens[at] for at in places],
            rows=self.rows[which],
            is_rescued=self.is_rescued[which],
        )


def drift_bound(quant: str | None, *, on_device: bool) -> float:
    """Return the least cosine that rows of one text may have when only the batch or a kernel differs.

    Args:
        quant: of the file, None where it is not known.
        on_device: whether it runs elsewhere than on the CPU.
    """
    if quant not in ("F32", "F16", "BF16"):
        return _QUANTIZED_COSINE
    return _ON_DEVICE_COSINE if on_device else _UNQUANTIZED_COSINE


def check_finite(session: Session, texts: Sequence[str]) -> tuple[Check, Sample | None]:
    """Embed texts on which models were seen to give NaN, and look at every row.

    Returns:
        What was found, and the rows; None where there are none.
    """
    tokens, _ = session.tokenize(texts, truncate="end")
    rows, is_rescued = [], []
    for text, ids in zip(texts, tokens, strict=True):
        n_before = session.n_rescued
        try:
            rows.append(session.embed([ids]))
        except BackendError as error:
            words = str(error).partition(" What is wrong: ")[0]  # that is what is being found out
            return Check(name="finite", state="fault", words=f"{_quoted(text)}: {words}"), None
        is_rescued.append(session.n_rescued > n_before)
    sample = Sample(
        texts=tuple(texts), tokens=tokens, rows=l2_normalize(np.concatenate(rows)), is_rescued=np.array(is_rescued)
    )
    if n_rescued := int(sample.is_rescued.sum()):
        words = f"{n_rescued} of {len(texts)} texts have no finite row until they are tried again, which is slow"
        return Check(name="finite", state="mended", words=words, figure=n_rescued, bound=0), sample
    return Check(name="finite", state="ok", words=f"{len(texts)} texts, every row finite and not zero"), sample


def check_distinct(sample: Sample) -> Check:
    """Check that texts of different tokens have vectors of their own."""
    cosines = sample.rows @ sample.rows.T
    alike = [[set(one.tolist()) == set(other.tolist()) for other in sample.tokens] for one in sample.tokens]
    cosines[np.array(alike)] = -1  # each with itself, and those of which a small vocabulary knows no word
    first, second = divmod(int(cosines.argmax()), len(sample.texts))
    figure = float(cosines[first, second])
    if figure < _SAME_COSINE:
        words = f"different texts have different vectors: cosine {figure:.4f} at the most"
        return Check(name="distinct", state="ok", words=words, figure=figure, bound=_SAME_COSINE)
    one, other = _quoted(sample.texts[first]), _quoted(sample.texts[second])
    words = f"{one} and {other} have the same vector: weights or pooling are wrong"
    return Check(name="distinct", state="fault", words=words, figure=figure, bound=_SAME_COSINE)


def check_batches(session: Session, sample: Sample, *, bound: float) -> Check:
    """Check that a text has the vector that it has alone also among others, and in another order."""
    name = "batches"
    if session.layout.n_seq_max == 1 or sum(sorted(map(len, sample.tokens))[:2]) > session.settings.n_batch:
        return Check(name=name, state="skipped", words="a decode holds one text here")
    n_before = session.n_rescued
    try:
        together, backwards = session.embed(sample.tokens), session.embed(sample.tokens[::-1])[::-1]
    except BackendError as error:
        return Check(name=name, state="fault", words=str(error))
    if n_rescued := session.n_rescued - n_before - 2 * int(sample.is_rescued.sum()):
        words = f"{n_rescued} rows were not finite in a batch, and are alone: batches are decoded twice, which is slow"
        return Check(name=name, state="mended", words=words, figure=n_rescued, bound=0)
    ways = np.minimum(similarity_pairwise(sample.rows, together), similarity_pairwise(sample.rows, backwards))
    words = f"{len(sample.texts)} texts alone and together"
    return _held(name, ways, sample, bound, words, "a text's vector hangs on the texts beside it")


def check_agreement(
    name: str, sample: Sample, other: Callable[[list[Tokens]], Float32Matrix], *, bound: float, words: str, fault: str
) -> Check:
    """Hold a session's rows against those that another way gives for the same tokens.

    Args:
        name: of the check.
        sample: the session's.
        other: gives (n, n_embd) raw rows for tokens; raises BackendError where that way cannot be gone.
        bound: least cosine.
        words: what was compared.
        fault: what it means when they differ.
    """
    sample = sample.where(~sample.is_rescued)
    if not sample.texts:
        return Check(name=name, state="skipped", words="no text has a row of the model's own way")
    try:
        theirs = other(sample.tokens)
    except BackendError as error:
        return Check(name=name, state="skipped", words=str(error))
    if not _is_finite(theirs):
        return Check(name=name, state="fault", words=f"{fault}: a row is not finite there", bound=bound)
    return _held(name, similarity_pairwise(sample.rows, theirs), sample, bound, words, fault)


def check_flash_attn(session: Session, sample: Sample, *, bound: float) -> Check:
    """Check that rows are the same with and without flash attention, and finite with it where they are without."""
    name, fault = FLASH_ATTN, "it gives other vectors; leave it out: --no-flash-attn"
    if session.layout.flash_attn == "off":
        return Check(name=name, state="note", words="left out: as told, or since it gave other vectors before")
    if session.layout.kv_type != "f16":
        return Check(name=name, state="skipped", words="a quantized KV cache is read with it alone")

    def without(tokens: list[Tokens]) -> Float32Matrix:
        return session.embed_otherwise(tokens, flash_attn="off")

    lost = sample.where(sample.is_rescued)
    try:
        if lost.texts and _is_finite(without(lost.tokens)) and not _is_finite(session.embed_otherwise(lost.tokens)):
            words = f"{fault}; {len(lost.texts)} texts are finite without it alone, such as {_quoted(lost.texts[0])}"
            return Check(name=name, state="fault", words=words, figure=len(lost.texts), bound=0)
    except BackendError as error:
        return Check(name=name, state="skipped", words=str(error))
    return check_agreement(name, sample, without, bound=bound, words="with and without", fault=fault)


def _quoted(text: str) -> str:
    """A text for a message, shortened where it is long."""
    return repr(text if len(text) <= _N_QUOTED else f"{text[: _N_QUOTED - 3]}...")


def _is_finite(rows: Float32Matrix) -> bool:
    return bool(np.isfinite(rows).all())


def _held(name: str, cosines: NDArray[np.float32], sample: Sample, bound: float, words: str, fault: str) -> Check:
    worst = int(np.argmin(cosines))
    figure = float(cosines[worst])
    if figure >= bound:
        fine = f"{words}: cosine {figure:.6f} at the least"
        return Check(name=name, state="ok", words=fine, figure=figure, bound=bound)
    said = f"{fault}: {_quoted(sample.texts[worst])} has cosine {figure:.6f}, and {bound} is the least that will do"
    return Check(name=name, state="fault", words=said, figure=figure, bound=bound)
