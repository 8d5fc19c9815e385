"""Tries other ways to pack tokens and to share out threads than the plan's, and says which is fastest.

It must not know other programs or how figures are shown.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_embed.bench.measuring import Spread, ratio, rotated, spread
from gguf_embed.bench.workload import cut, documents, sentences
from gguf_embed.engine.session import Session, SessionSettings
from gguf_embed.fit import hardware
from gguf_embed.fit.hardware import Hardware
from gguf_embed.fit.plan import Plan
from gguf_embed.fit.tuning import Tuning, load_tuning, remember_tuning, tuning_path
from gguf_embed.loading import load_session
from gguf_embed.models.catalog import Catalog
from gguf_embed.selection import Overrides, Selection

__all__ = ["Trial", "Tuned", "batch_candidates", "choose", "thread_candidates", "tune"]
