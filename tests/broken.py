"""Files with one fault each, made of a sound synthetic Qwen3 or of none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import synthetic

from gguf_embed.native.ggml import load_header


def without_eos(folder):
    """Its tokenizer says nothing of EOS, as early conversions did."""
    return synthetic.write_qwen3(folder / "without-eos.gguf", add_eos=None)


def mean_pooling(folder):
    """Pools the mean where its model wants the last token."""
    return synthetic.write_qwen3(folder / "mean-pooling.gguf", pooling_type=1)


def without_rank_head(folder):
    """A reranker without cls.output.weight."""
    return synthetic.write_qwen3(folder / "without-rank-head.gguf", pooling_type=4)


def chat_model(folder):
    """Says nothing of pooling."""
    return synthetic.write_qwen3(folder / "chat.gguf", pooling_type=None)


def zero_tensor(folder):
    """A whole matrix is zeros."""
    return zeroed(folder, "blk.1.ffn_down.weight")


def nan_weight(folder):
    """One number of a matrix is NaN."""
    path = synthetic.write_qwen3(folder / "nan-weight.gguf")

    def spoil(data):
        values = data.copy().view(np.float32)
        values[12345] = np.nan
        return values.view(np.uint8)

    _overwrite(path, "blk.2.attn_v.weight", spoil)
    return path


def other_pretokenizer(folder):
    """Texts are cut by GPT-2's rule."""
    path = synthetic.write_qwen3(folder / "other-pre.gguf")
    data = bytearray(path.read_bytes())
    at = data.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre")
    at = data.index(b"qwen2", at)
    data[at : at + 5] = b"gpt-2"
    path.write_bytes(data)
    return path


def truncated(folder):
    """Its last tenth is missing."""
    path = synthetic.write_qwen3(folder / "truncated.gguf")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    return path


def offset_of(path: Path, name: str) -> tuple[int, int]:
    """First byte and size of a tensor in a file whose tensors are padded to 32 bytes."""
    header = load_header(path)
    offset = header.data_offset
    for tensor in header.tensors:
        if tensor.name == name:
            return offset, tensor.size_bytes
        offset += -(-tensor.size_bytes // 32) * 32
    raise ValueError(name)


def _overwrite(path, name, change):
    start, size = offset_of(path, name)
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    data[start : start + size] = change(data[start : start + size])
    path.write_bytes(data.tobytes())


def zeroed(folder, name):
    """A tensor of one's choice is zeros."""
    path = synthetic.write_qwen3(folder / "zeroed.gguf")
    _overwrite(path, name, np.zeros_like)
    return path
