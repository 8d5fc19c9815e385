"""Small models with the real architectures and random weights, written with the gguf package.

They carry no meaning; they carry shapes, tokenizer rules and arithmetic, which is what parity and guards need. The
weights come from a seeded generator by tensor name, so that another program can build the very same model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

END_OF_TEXT = "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
# Pairs in merge order: enough for whole words, spaces and a few bytes beyond ASCII.
MERGES = (
    "t h", "th e", "i n", "a n", "e r", "o n", "r e", "Ġ t", "Ġ a", "Ġ the", "an d", "Ġ and", "in g", "Ġ Ġ", "ĠĠ ĠĠ",
    "o f", "Ġ of", "t i", "ti on", "Ã ©", "ä ¸", "e n", "o r", "Ġ w", "Ġ s", "c a", "ca p", "i t", "a l", "it al",  # noqa: RUF001
    "cap ital", "Ġ capital",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Qwen3Shape:
    """Hyperparameters; key_length is not n_embd / n_head, as in the real models."""

    n_layer: int = 3
    n_embd: int = 256
    n_ff: int = 512
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 128
    n_ctx_train: int = 1024
    rope_theta: float = 1e6
    rms_eps: float = 1e-6


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte, in byte order.

    Source: openai/gpt-2 encoder.py, bytes_to_unicode.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols, extra = {}, 0
    for byte in range(256):
        symbols[byte] = chr(byte) if byte in printable else chr(256 + extra)
        extra += byte not in printable
    return [symbols[byte] for byte in range(256)]


def bpe_vocabulary() -> list[str]:
    """Bytes, merged pairs, then the control tokens."""
    merged = ["".join(pair.split(" ")) for pair in MERGES]
    return [*byte_symbols(), *dict.fromkeys(merged), *CONTROL_TOKENS]


def small_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their kinds, and merges: enough for English words and any byte."""
    tokens = bpe_vocabulary()
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    return tokens, [control if token in CONTROL_TOKENS else normal for token in tokens], list(MERGES)


def read_vocabulary(path: Path) -> tuple[list[str], list[int], list[str]]:
    """Read tokens, their kinds, and merges from a GGUF."""
    fields = gguf.GGUFReader(path).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    return tokens, kinds, merges


def qwen3_tensors(shape: Qwen3Shape, n_vocab: int, *, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (gguf name, float32 array) with rows as outputs, as PyTorch's Linear keeps them."""
    q_out, kv_out = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    yield "token_embd.weight", _random("token_embd.weight", (n_vocab, shape.n_embd), seed)
    yield "output_norm.weight", 1 + 0.1 * _random("output_norm.weight", (shape.n_embd,), seed)
    for layer in range(shape.n_layer):
        for name, size in {
            "attn_q": (q_out, shape.n_embd),
            "attn_k": (kv_out, shape.n_embd),
            "attn_v": (kv_out, shape.n_embd),
            "attn_output": (shape.n_embd, q_out),
            "ffn_gate": (shape.n_ff, shape.n_embd),
            "ffn_up": (shape.n_ff, shape.n_embd),
            "ffn_down": (shape.n_embd, shape.n_ff),
        }.items():
            key = f"blk.{layer}.{name}.weight"
            yield key, _random(key, size, seed) * np.float32(size[1] ** -0.5)
        for name, length in {
            "attn_norm": shape.n_embd,
            "ffn_norm": shape.n_embd,
            "attn_q_norm": shape.head_dim,
            "attn_k_norm": shape.head_dim,
        }.items():
            key = f"blk.{layer}.{name}.weight"
            yield key, 1 + np.float32(0.1) * _random(key, (length,), seed)


def write_qwen3(
    path: Path,
    *,
    shape: Qwen3Shape | None = None,
    n_vocab: int | None = None,
    f16: bool = False,
    add_eos: bool | None = True,
    pooling_type: int | None = 3,
    architecture: str = "qwen3",
    seed: int = 0,
    holes: bool = False,
    types: Callable[[str], gguf.GGMLQuantizationType] | None = None,
    n_merges: int = 0,
    vocabulary: Path | None = None,
) -> Path:
    """Write a Qwen3 embedding model.

    Args:
        path: the file to write.
        shape: hyperparameters.
        n_vocab: pads the vocabulary with unused tokens up to this many.
        f16: store matrices as F16.
        add_eos: tokenizer.ggml.add_eos_token; None leaves the key out.
        pooling_type: qwen3.pooling_type; None leaves the key out.
        architecture: another name makes a file that llama.cpp lacks.
        seed: of the weights.
        holes: write the header alone and let the data be a hole in the file (shapes without weights).
        n_merges: pads the merges with useless ones up to this many, for a header as large as a real one.
        types: says how each tensor of a file with holes is quantized, by its name (`q4_k_m`); None leaves them F16 or
            F32.
        vocabulary: a GGUF whose tokens and merges to take, such as llama.cpp's models/ggml-vocab-qwen2.gguf, where
            the number of tokens in a text matters.
    """
    shape = shape or Qwen3Shape()
    tokens, kinds, merges = small_vocabulary() if vocabulary is None else read_vocabulary(vocabulary)
    n_unused = max(0, (n_vocab or 0) - len(tokens))
    tokens += [f"<|unused{index}|>" for index in range(n_unused)]
    kinds += [gguf.TokenType.UNUSED] * n_unused
    merges += [f"l{index} r" for index in range(n_merges - len(merges))]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("synthetic")
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_block_count(shape.n_layer)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    unquantized = gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M if types is not None else unquantized)
    if pooling_type is not None:
        writer.add_uint32(f"{architecture}.pooling_type", pooling_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(END_OF_TEXT))
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(value=False)
    if add_eos is not None:
        writer.add_add_eos_token(add_eos)
    return _finish(writer, path, qwen3_tensors(shape, len(tokens), seed=seed) if not holes
                   else _hollow(shape, len(tokens)), f16=f16, holes=holes, types=types)  # fmt: skip


def q4_k_m(n_layer: int) -> Callable[[str], gguf.GGMLQuantizationType]:
    """Say how llama.cpp quantizes a dense model's tensors to Q4_K_M, by name.

    Source: src/llama-quant.cpp, use_more_bits and llama_tensor_get_type.
    """
    types = gguf.GGMLQuantizationType

    def type_of(name: str) -> gguf.GGMLQuantizationType:
        if "norm" in name:
            return types.F32
        if name == "token_embd.weight":
            return types.Q6_K
        layer = int(name.split(".")[1])
        has_more_bits = layer < n_layer // 8 or layer >= 7 * n_layer // 8 or (layer - n_layer // 8) % 3 == 2
        is_fine = has_more_bits and name.endswith(("attn_v.weight", "ffn_down.weight"))
        return types.Q6_K if is_fine else types.Q4_K

    return type_of


def write_bert(
    path: Path, *, n_embd: int = 64, n_layer: int = 2, pooling_type: int = 2, n_ctx_train: int = 128
) -> Path:
    """Write a BERT encoder over a tiny WordPiece vocabulary."""
    words = ["the", "cat", "sat", "mat", "on", "a", "dog", "##s", "##ing", "run", *"bcdefghijklmnopqrstuvwxyz", "."]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [word[2:] if word.startswith("##") else "\u2581" + word for word in words]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("synthetic-bert")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(4 * n_embd)
    writer.add_block_count(n_layer)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    writer.add_uint32("bert.pooling_type", pooling_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * len(words))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    return _finish(writer, path, _bert_tensors(n_embd, n_layer, n_ctx_train, len(tokens)), f16=False, holes=False)


def _bert_tensors(n_embd: int, n_layer: int, n_ctx: int, n_vocab: int) -> Iterator[tuple[str, np.ndarray]]:
    def matrix(key: str, rows: int, columns: int) -> tuple[str, np.ndarray]:
        return key, _random(key, (rows, columns), 0) * np.float32(columns**-0.5)

    def norm(key: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{key}.weight", 1 + np.float32(0.1) * _random(f"{key}.weight", (n_embd,), 0)
        yield f"{key}.bias", np.float32(0.1) * _random(f"{key}.bias", (n_embd,), 0)

    yield matrix("token_embd.weight", n_vocab, n_embd)
    yield matrix("position_embd.weight", n_ctx, n_embd)
    yield matrix("token_types.weight", 2, n_embd)
    yield from norm("token_embd_norm")
    for layer in range(n_layer):
        for name, rows, columns in (
            ("attn_q", n_embd, n_embd), ("attn_k", n_embd, n_embd), ("attn_v", n_embd, n_embd),
            ("attn_output", n_embd, n_embd), ("ffn_up", 4 * n_embd, n_embd), ("ffn_down", n_embd, 4 * n_embd),
        ):  # fmt: skip
            key = f"blk.{layer}.{name}"
            yield matrix(f"{key}.weight", rows, columns)
            yield f"{key}.bias", np.float32(0.1) * _random(f"{key}.bias", (rows,), 0)
        yield from norm(f"blk.{layer}.attn_output_norm")
        yield from norm(f"blk.{layer}.layer_output_norm")


def _hollow(shape: Qwen3Shape, n_vocab: int) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors that take no memory: one zero, broadcast."""
    small = Qwen3Shape(n_layer=1, n_embd=2, n_ff=4, n_head=1, n_head_kv=1, head_dim=3)
    lengths = {2: shape.n_embd, 4: shape.n_ff, 3: shape.head_dim, 5: n_vocab}
    for name, array in qwen3_tensors(small, 5):
        q_out, kv_out = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        size = tuple(lengths[n] for n in array.shape)
        if name.endswith("attn_q.weight"):
            size = (q_out, shape.n_embd)
        elif name.endswith(("attn_k.weight", "attn_v.weight")):
            size = (kv_out, shape.n_embd)
        elif name.endswith("attn_output.weight"):
            size = (shape.n_embd, q_out)
        layers = range(shape.n_layer) if name.startswith("blk.0.") else [0]
        for layer in layers:
            yield name.replace("blk.0.", f"blk.{layer}."), np.broadcast_to(np.float32(0), size)


def _random(name: str, size: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([zlib.crc32(name.encode()), seed]).standard_normal(size, dtype=np.float32)


def _finish(
    writer: gguf.GGUFWriter,
    path: Path,
    tensors: Iterator[tuple[str, np.ndarray]],
    *,
    f16: bool,
    holes: bool,
    types: Callable[[str], gguf.GGMLQuantizationType] | None = None,
) -> Path:
    size_bytes = 0
    for name, tensor in tensors:
        dtype = np.float16 if f16 and tensor.ndim > 1 else np.float32
        if holes and types is not None:
            block, block_bytes = gguf.GGML_QUANT_SIZES[types(name)]
            n_bytes = int(np.prod(tensor.shape)) // block * block_bytes
            byte_shape = gguf.quant_shape_to_byte_shape(tensor.shape, types(name))
            writer.add_tensor_info(name, byte_shape, np.dtype(np.uint8), n_bytes, raw_dtype=types(name))
            size_bytes += -(-n_bytes // 32) * 32
        elif holes:
            n_bytes = int(np.prod(tensor.shape)) * np.dtype(dtype).itemsize
            writer.add_tensor_info(name, tensor.shape, np.dtype(dtype), n_bytes)
            size_bytes += -(-n_bytes // 32) * 32
        else:
            writer.add_tensor(name, tensor.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if holes:
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as file:
            file.seek(0, 2)
            file.truncate(-(-file.tell() // 32) * 32 + size_bytes)
    else:
        writer.write_tensors_to_file()
        writer.close()
    return path


def register_qwen3(config_dir: Path, path: Path) -> None:
    """Give a file of write_qwen3 an entry in a user's registry: prompts, a task, and MRL 32..256."""
    config_dir.mkdir(exist_ok=True)
    entry = f"""schema = 1
[models.synthetic-qwen3]
base_repo = "someone/synthetic-qwen3"
license = "MIT"
arch = "qwen3"
pooling_type = "last"
add_eos = true
n_embd = 256
max_tokens = 1024
matryoshka = {{ min = 32, max = 256 }}
ladder = ["F32"]
prompts = {{ query = "Instruct: the task\\nQuery:", query_template = "Instruct: {{task}}\\nQuery:{{text}}" }}

[[models.synthetic-qwen3.files]]
quant = "F32"
repo = "someone/synthetic-qwen3-GGUF"
file = "{path.name}"
"""
    (config_dir / "models.toml").write_text(entry, encoding="utf-8")
