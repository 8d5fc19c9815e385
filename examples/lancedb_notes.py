# %% [markdown]
# # Notes in LanceDB
#
# A table that embeds what is added to it and what it is asked for, on this machine: rows with the model's document
# prompt, searches with its query prompt. Run it as a script, or cell by cell in an editor that knows `# %%`.
#
# Needs: `pip install "gguf-embed[lancedb]"`.

# %%
"""Notes in LanceDB: a table that embeds its rows and its searches on this machine, filters, and finds by words too."""

import tempfile

import lancedb
from lancedb.embeddings import get_registry
from lancedb.index import FTS
from lancedb.pydantic import LanceModel, Vector

import gguf_embed.integrations.lancedb  # noqa: F401 - registers "gguf-embed"

# %% [markdown]
# The table's schema names the model. It is kept with the table: whoever opens it later gets the same one.

# %%
model = (
    get_registry().get("gguf-embed").create()
)  # name="qwen3-embedding-0.6b:Q8_0" for another than the configured one


class Note(LanceModel):
    """A note; LanceDB fills in its vector."""

    text: str = model.SourceField()
    year: int
    vector: Vector(model.ndims()) = model.VectorField()


folder = tempfile.mkdtemp()
table = lancedb.connect(folder).create_table("notes", schema=Note)
table.add([
    {"text": "The kitten naps on the couch.", "year": 2023},
    {"text": "The central bank raised its key rate.", "year": 2024},
    {"text": "A dog is barking at the postman.", "year": 2024},
    {"text": "Bread rises overnight in the fridge.", "year": 2025},
])  # fmt: skip
print(f"{table.count_rows()} notes of {model.ndims()} dimensions with {model.name}")

# %% [markdown]
# By meaning, with a filter: `distance` is 1 - cosine.

# %%
for hit in table.search("a sleeping cat").metric("cosine").limit(2).to_list():
    print(f"{1 - hit['_distance']:.2f}  {hit['text']}")

for hit in table.search("a sleeping cat").metric("cosine").where("year >= 2024").limit(1).to_list():
    print(f"{1 - hit['_distance']:.2f}  {hit['text']}  (since 2024)")

# %% [markdown]
# By meaning and by words: LanceDB ranks both ways and joins the ranks.

# %%
table.create_index("text", config=FTS())
for hit in table.search("postman", query_type="hybrid").limit(1).to_list():
    print(f"      {hit['text']}  (hybrid)")

# %% [markdown]
# Another program opens the table and has only to import the adapter.

# %%
again = lancedb.connect(folder).open_table("notes")
print(again.search("interest rates").limit(1).to_list()[0]["text"])
