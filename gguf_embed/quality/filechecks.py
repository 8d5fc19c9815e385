"""What can be told of a GGUF without running it: whole, published, of the right kind, its numbers in order.

Each check returns what it found and raises nothing. It must not know sessions, texts or what to do then.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_embed.engine.checks import Check
from gguf_embed.errors import ModelLoadError
from gguf_embed.models.header import ModelFacts, load_facts
from gguf_embed.models.specs import ModelSpec
from gguf_embed.native.ggml import GGUFHeader, load_header
from gguf_embed.native.llama import is_architecture_supported
from gguf_embed.native.weights import TensorState, scan_tensors
from gguf_embed.sizes import format_size

__all__ = ["GivenFile", "check_file"]

# How these architectures' texts are cut; by another rule, digits and spaces become other tokens.
# Source: llama.cpp convert_hf_to_gguf_update.py; tokenizer_config.json of Qwen2 and Qwen3.
_QWEN_ARCHITECTURES = re.compile(r"qwen[23](?:moe|vl)?")
_QWEN_PRETOKENIZERS = ("qwen2", "deepseek-r1-qwen")
# Tensors without which a conversion gives other vectors than its model. Source: research/pain.md 22, 44; llama.cpp
# src/models/{gemma-embedding,bert}.cpp.
_REQUIRED = {
    "gemma-embedding": ("dense_2.weight", "dense_3.weight"),
    "bert": ("position_embd.weight", "token_types.weight", "token_embd_norm.weight"),
}
_RANK_HEAD = ("cls.output.weight", "cls.weight")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# Rows of zeros are not trained: a few for units that died, and in tables a hundredth for tokens that nobody uses. A
# choice: no tensor of all-MiniLM-L6-v2 has one, in F16, Q8_0, Q4_K_M, Q4_K_S or Q3_K_M.
_N_DEAD_ROWS = 8
_TABLES = re.compile(r"(?:token_embd|position_embd|token_types|output|per_layer_token_embd)\.weight")
_N_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFile:
    """A file, and what is known of it from elsewhere.

    Attributes:
        path: of the GGUF.
        spec: what the registry knows of the model, None where it does not.
        sha256: as it was published, None where nobody has.
        made_sha256: as this program makes it of published weights, with one version of the writer; None elsewhere.
        pooling_type: the caller's word, None for none.
        add_eos: the caller's word, None for none.
        n_threads: for reading its numbers.
    """

    path: Path
    spec: ModelSpec | None
    sha256: str | None = None
    made_sha256: str | None = None
    pooling_type: str | None = None
    add_eos: bool | None = None
    n_threads: int = 1


def check_file(given: GivenFile) -> Iterator[Check]:
    """Look at a file, the quick things first; one that cannot be read ends it."""
    try:
        header = load_header(given.path)
        facts = load_facts(given.path)
    except ModelLoadError as error:
        yield _fault("file", str(error))
        return
    size = format_size(given.path.stat().st_size)
    yield _ok("file", f"whole: {size}, {len(header.tensors)} tensors, {facts.quant or 'mixed'}")
    yield _checksum(given)
    yield _architecture(facts, given.spec)
    yield _pooling(header, facts, given)
    if facts.pooling_type == "rank":
        yield _rank_head(header)
    yield _eos(facts, given)
    yield _pretokenizer(header, facts)
    yield _context(facts, given.spec)
    yield _tensors(header, facts)
    yield from _weights(given)


def _checksum(given: GivenFile) -> Check:
    expected = given.sha256 or given.made_sha256
    if expected is None:
        return Check(name="checksum", state="skipped", words="none is published for this file")
    with given.path.open("rb") as file:  # not fingerprints.sha256_of: a blob's name is what is to be proved
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual == expected:
        how = "as published" if given.sha256 is not None else "as it is made of the published weights"
        return _ok("checksum", f"{how}: SHA-256 {actual[:12]}...")
    words = f"SHA-256 is {actual[:12]}... and not {expected[:12]}..."
    if given.sha256 is None:
        return _note("checksum", f"{words}: made by another version of the writer, or changed; make it anew: rm, pull")
    return _fault("checksum", f"{words}, which was published: it was changed; delete it and fetch it again")


def _architecture(facts: ModelFacts, spec: ModelSpec | None) -> Check:
    name = "architecture"
    if not is_architecture_supported(facts.architecture):
        words = f"{facts.architecture} is not known to this llama.cpp; a newer one may: pip install -U llama-cpp-python"
        return _fault(name, words)
    if spec is not None and (facts.architecture, facts.n_embd) != (spec.arch, spec.n_embd):
        words = (
            f"{facts.architecture} with {facts.n_embd} components; {spec.model_id} is {spec.arch} with {spec.n_embd}: "
            "another model under its name"
        )
        return _fault(name, words)
    return _ok(name, f"{facts.architecture}, {facts.n_layer} layers, n_embd {facts.n_embd}")


def _pooling(header: GGUFHeader, facts: ModelFacts, given: GivenFile) -> Check:
    name, of_file, told = "pooling", facts.pooling_type, given.pooling_type
    known = given.spec.pooling_type if given.spec is not None else None
    if told is not None and told != (known or of_file or told):
        whose = f"the registry says {known}" if known is not None else f"the file says {of_file}"
        return _note(name, f"{told}, as told; {whose}, and nothing here proves you right")
    wanted, whose = told or known, "as told" if told else "the registry's word"
    if wanted is None:
        return _pooling_of_file(header, facts)
    if of_file == wanted:
        return _ok(name, f"{wanted}, {whose} and the file's")
    said = "nothing" if of_file is None else of_file
    return _mended(name, f"the file says {said}; {wanted} is used here ({whose}). Other programs do as the file says")


def _pooling_of_file(header: GGUFHeader, facts: ModelFacts) -> Check:
    """Judge the file's own word, where nobody knows better."""
    name, of_file = "pooling", facts.pooling_type
    if of_file is None:
        is_chat = "tokenizer.chat_template" in header.metadata
        words = f"the file says nothing of pooling{' and has a chat template' if is_chat else ''}: a chat model"
        return _fault(name, f"{words}, it seems. For an embedding model, pass --pooling as its card says")
    if of_file == "rank":
        words = "rank: a reranker, which scores pairs and has no embeddings; take its embedding sibling"
        return _fault(name, words)
    if of_file in ("mean", "cls") and facts.is_decoder and facts.is_causal and facts.add_eos:
        words = (
            f"the file says {of_file}, and ends texts in EOS, as models do that pool the last token; if its card says "
            f"{of_file} too, pass --pooling {of_file}, else --pooling last"
        )
        return _fault(name, words)
    return _ok(name, f"{of_file}, the file's word; the registry does not know this model")


def _rank_head(header: GGUFHeader) -> Check:
    names = {tensor.name for tensor in header.tensors}
    has = [name for name in _RANK_HEAD if name in names]
    if has:
        return _ok("rank head", f"{has[0]} is there")
    words = "cls.output.weight is missing: this conversion has lost its head, and its scores are noise"
    return _fault("rank head", words)


def _eos(facts: ModelFacts, given: GivenFile) -> Check:
    name, spec = "EOS", given.spec
    if not facts.is_decoder:
        return _ok(name, "an encoder's tokenizer closes texts by itself, whatever the file or the caller says")
    pooling = given.pooling_type or (spec.pooling_type if spec is not None else None) or facts.pooling_type
    wanted = given.add_eos if given.add_eos is not None else spec.add_eos if spec is not None else None
    said = {True: "adds it", False: "does not add it", None: "says nothing of it"}[facts.add_eos]
    if wanted is not None and facts.add_eos != wanted:
        whose = "as told" if given.add_eos is not None else "the registry's word"
        done = "added" if wanted else "left out"
        words = f"the file {said}; it is {done} here, {whose}. Other programs do as the file says"
        return _mended(name, words)
    if pooling == "last" and not facts.add_eos:
        words = (
            f"the file {said} (tokenizer.ggml.add_eos_token), and the last token is pooled: vectors would be wrong. "
            "Take a newer conversion, or pass --add-eos"
        )
        return _fault(name, words)
    return _ok(name, f"the file {said}")


def _pretokenizer(header: GGUFHeader, facts: ModelFacts) -> Check:
    name = "tokenizer"
    family, pre = header.metadata.get("tokenizer.ggml.model"), header.metadata.get("tokenizer.ggml.pre")
    if family != "gpt2":
        return _ok(name, f"{family}, {facts.n_vocab:,} tokens")
    if _QWEN_ARCHITECTURES.fullmatch(facts.architecture) and pre not in _QWEN_PRETOKENIZERS:
        words = (
            f"tokenizer.ggml.pre is {pre or 'missing'}, and {facts.architecture} cuts texts by qwen2's rule: digits "
            "and spaces become other tokens than the model was trained on. Take another conversion"
        )
        return _fault(name, words)
    if pre is None or pre == "default":
        words = f"tokenizer.ggml.pre is {pre or 'missing'}: texts are cut by a guess; take a newer conversion"
        return _fault(name, words)
    return _ok(name, f"byte-level BPE cut as {pre}, {facts.n_vocab:,} tokens")


def _context(facts: ModelFacts, spec: ModelSpec | None) -> Check:
    name = "context"
    if spec is not None and facts.n_ctx_train < spec.max_tokens:
        words = f"{facts.n_ctx_train:,} tokens in the file; the card says {spec.max_tokens:,}: longer texts are refused"
        return _note(name, words)
    used = facts.n_ctx_train if spec is None else spec.max_tokens
    beside = "" if used == facts.n_ctx_train else f" ({facts.n_ctx_train:,} in the file)"
    return _ok(name, f"texts of up to {used:,} tokens{beside}")


def _tensors(header: GGUFHeader, facts: ModelFacts) -> Check:
    name = "tensors"
    names = {tensor.name for tensor in header.tensors}
    missing = [one for one in ("token_embd.weight", *_REQUIRED.get(facts.architecture, ())) if one not in names]
    if missing:
        words = f"{', '.join(missing)} missing, without which its vectors are others than its model's"
        return _fault(name, f"{words}; take another conversion")
    layers: dict[int, set[str]] = {}
    for tensor in header.tensors:
        if match := _LAYER.fullmatch(tensor.name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    absent = sorted(set(range(facts.n_layer)) - layers.keys())
    if absent:
        return _fault(name, f"layer {absent[0]} of {facts.n_layer} has no tensors")
    return _ok(name, f"all {facts.n_layer} layers are there")


def _weights(given: GivenFile) -> Iterator[Check]:
    states = scan_tensors(given.path, n_threads=given.n_threads)
    broken = [state for state in states if state.n_non_finite]
    if broken:
        first = broken[0]
        words = f"{first.n_non_finite:,} of {first.n_values:,} numbers of {_named(broken)} are NaN or infinite"
        yield _fault("weights", f"{words}; fetch the file again")
    empty = [state for state in states if state.is_zero and state.name.endswith(".weight")]
    if empty:
        yield _fault("weights", f"{_named(empty)} is all zeros; fetch the file again")
    holes = [one for one in states if one.n_rows > 1 and not one.is_zero and one.n_zero_rows > _unused_rows(one)]
    if holes:
        part = f"{holes[0].n_zero_rows:,} of {holes[0].n_rows:,} rows"
        yield _fault("weights", f"{part} of {_named(holes)} are zeros, as broken downloads leave them; fetch it again")
    if not (broken or empty or holes):
        n_values = sum(state.n_values for state in states)
        yield _ok("weights", f"all {n_values / 1e6:,.1f} million numbers are finite, none lost")


def _ok(name: str, words: str) -> Check:
    return Check(name=name, state="ok", words=words)


def _fault(name: str, words: str) -> Check:
    return Check(name=name, state="fault", words=words)


def _mended(name: str, words: str) -> Check:
    return Check(name=name, state="mended", words=words)


def _note(name: str, words: str) -> Check:
    return Check(name=name, state="note", words=words)


def _unused_rows(state: TensorState) -> int:
    """How many rows of zeros a sound tensor may have."""
    return state.n_rows // 100 if _TABLES.fullmatch(state.name) else _N_DEAD_ROWS


def _named(states: list[TensorState]) -> str:
    names = ", ".join(state.name for state in states[:_N_NAMED])
    return names if len(states) <= _N_NAMED else f"{names} and {len(states) - _N_NAMED} more"
