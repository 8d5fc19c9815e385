"""What llama.cpp and ggml tell, through ctypes."""

from __future__ import annotations

import pytest
import synthetic

from gguf_embed.errors import BackendError, InvalidGGUFError, ModelLoadError, UnsupportedModelError
from gguf_embed.fit.hardware import probe
from gguf_embed.models.header import check_embeddable, facts_of_header, load_facts
from gguf_embed.models.registry import load_registry
from gguf_embed.native import ggml, llama, quantize


def test_header_of_a_file(qwen3):
    """Header facts come from llama.cpp's parser: sizes, pooling, EOS, and every tensor's bytes."""
    facts = load_facts(qwen3)
    shape = synthetic.Qwen3Shape()
    assert (facts.architecture, facts.pooling_type, facts.add_eos, facts.quant) == ("qwen3", "last", True, "F32")
    assert (facts.n_layer, facts.n_embd, facts.n_ff) == (shape.n_layer, shape.n_embd, shape.n_ff)
    assert (facts.n_head_kv, facts.head_dim) == (2, 128)
    assert facts.head_dim != facts.n_embd // shape.n_head
    assert facts.kv_bytes_per_token == 2 * 3 * 2 * 128 * 2
    header = ggml.load_header(qwen3)
    assert header.file_bytes <= qwen3.stat().st_size
    assert facts.weights_bytes == sum(tensor.size_bytes for tensor in header.tensors)
    table = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    assert (table.type_name, table.shape) == ("F32", (256, facts.n_vocab))
    assert (facts.output_bytes, facts.table_bytes) == (table.size_bytes, table.size_bytes + 256 * 4)


def test_header_from_the_first_bytes(qwen3):
    """Bytes short of the header give None, the header's bytes give the same as the file."""
    data = qwen3.read_bytes()
    whole = ggml.load_header(qwen3)
    assert ggml.parse_header(data[: whole.data_offset]) == whole
    for short in (0, 3, 100, whole.data_offset // 2):
        assert ggml.parse_header(data[:short]) is None
    assert ggml.parse_header(b"no GGUF at all" * 100) is None


def test_encoders_have_no_kv_cache(bert):
    """A BERT file is no causal model and keeps no keys and values."""
    facts = load_facts(bert)
    assert (facts.is_causal, facts.kv_bytes_per_token, facts.pooling_type) == (False, 0, "cls")


def test_architectures_are_asked_of_llama_cpp():
    """This llama.cpp says which architectures it loads."""
    assert llama.is_architecture_supported("qwen3")
    assert llama.is_architecture_supported("nomic-bert-moe")
    assert not llama.is_architecture_supported("qwen99")


def test_the_registry_is_of_known_architectures():
    """Every model of the registry is of an architecture that this llama.cpp loads."""
    unknown = [spec.model_id for spec in load_registry().models if not llama.is_architecture_supported(spec.arch)]
    assert unknown == []


def test_rerankers_and_shards_are_refused(tmp_path):
    """A reranker is named as one, and so is a shard of a split file."""
    path = synthetic.write_qwen3(tmp_path / "rank.gguf", pooling_type=4)
    with pytest.raises(UnsupportedModelError, match="reranker"):
        check_embeddable(load_facts(path), path, pooling_type=None)
    header = ggml.load_header(path)
    header.metadata["split.count"] = 3
    with pytest.raises(UnsupportedModelError, match="one of 3 shards"):
        facts_of_header(header, path)


def test_devices_and_hardware():
    """There is a CPU, its memory is the host's, and at least one core."""
    assert "cpu" in {device.kind for device in ggml.probe_devices()}
    hardware = probe()
    assert 0 < hardware.ram_available_bytes <= hardware.ram_total_bytes
    assert hardware.n_cores >= 1
    with pytest.raises(ValueError, match="no device is called 'CUDA9'"):
        ggml.device_handle("CUDA9")


def test_quantize_refuses_and_leaves_nothing(qwen3, tmp_path):
    """An unknown quantization and an unreadable source are errors that leave no file."""
    target = tmp_path / "out.gguf"
    with pytest.raises(ValueError, match="'Q9_X' is not one of"):
        quantize.quantize(qwen3, target, "Q9_X")
    with pytest.raises(InvalidGGUFError):
        quantize.quantize(tmp_path / "none.gguf", target, "Q8_0")
    with pytest.raises(BackendError, match="cannot be quantized"):
        quantize.quantize(qwen3, tmp_path / "no" / "folder.gguf", "Q8_0")
    assert not list(tmp_path.iterdir())


def test_load_errors_have_llama_cpps_reason(tmp_path):
    """What llama.cpp logged is in the error."""
    path = synthetic.write_qwen3(tmp_path / "new.gguf", architecture="qwen99")
    with pytest.raises(ModelLoadError, match="unknown model architecture: 'qwen99'"):
        llama.Model(path)
