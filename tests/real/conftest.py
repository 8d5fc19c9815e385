"""Real weights and synthetic models that llama.cpp loads; made once a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from gguf_embed.native.quantize import quantize

GOLDEN = Path(__file__).parents[1] / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs what llama.cpp loads."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic Qwen3 embedding model, F32."""
    return synthetic.write_qwen3(tmp_path_factory.mktemp("qwen3") / "synthetic-qwen3-F32.gguf")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic BERT with CLS pooling, F32."""
    return synthetic.write_bert(tmp_path_factory.mktemp("bert") / "synthetic-bert-F32.gguf")


@pytest.fixture(scope="session")
def qwen3_quantized(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make a quantization of the synthetic Qwen3: quant -> path."""
    folder, made = tmp_path_factory.mktemp("quants"), {}

    def make(quant: str) -> Path:
        if quant not in made:
            made[quant] = folder / f"synthetic-qwen3-{quant}.gguf"
            quantize(qwen3, made[quant], quant, n_threads=2)
        return made[quant]

    return make


@pytest.fixture(scope="session")
def golden_texts() -> list[str]:
    """The 64 texts of tests/golden."""
    return json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden() -> Any:
    """Load a golden file by name."""
    return lambda name: np.load(GOLDEN / f"{name}.npz")


@pytest.fixture
def registered(tmp_path: Path, qwen3: Path) -> Path:
    """Give the synthetic Qwen3 an entry in the user's registry: prompts and MRL 32..256."""
    synthetic.register_qwen3(tmp_path / "config", qwen3)
    return qwen3
