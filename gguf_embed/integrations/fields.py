"""The options of a SharedModel as fields of pydantic, which LangChain, LlamaIndex and LanceDB describe components with.

It must not know those hosts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gguf_embed.integrations.shared import SharedModel

__all__ = ["ModelFields", "VectorFields"]


class VectorFields(BaseModel):
    """What decides vectors, but for the model's name, which each host calls by a name of its own; see SharedModel."""

    model_config = ConfigDict(extra="forbid")

    truncate_dim: int | None = Field(default=None, ge=1, description="Components to keep (MRL).")
    task: str | None = Field(default=None, description="In place of the task in the model's query prompt.")
    truncate: Literal["error", "end"] = Field(default="error", description="What becomes of over-long texts.")
    prefer: str = Field(default="default", description="Which quantizations come first.")
    expect_fingerprint: str | None = Field(default=None, description="Refuse vectors with any other.")

    def shared_model(self, model: str) -> SharedModel:
        """Return the model of that name with these options."""
        names = (*VectorFields.model_fields, *ModelFields.model_fields)
        return SharedModel(model=model, **{name: getattr(self, name) for name in names if hasattr(self, name)})


class ModelFields(VectorFields):
    """And what of this machine may be used."""

    device: str | None = Field(default=None, description="auto, gpu, cpu or a device's name.")
    memory: str | None = Field(default=None, description='Most memory that the plan may use, such as "4GiB".')
    n_threads: int | None = Field(default=None, description="CPU threads; None for the physical cores.")
