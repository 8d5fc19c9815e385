"""Ask a folder of Markdown: LangChain splits, this machine embeds, Chroma keeps, an LLM answers where one is served.

    python examples/rag_langchain_chroma.py docs "Which quantization fits a GPU of 4 GB?"
    python examples/rag_langchain_chroma.py docs "..." --chat http://127.0.0.1:11434/v1 --chat-model qwen3:4b

Needs: pip install "gguf-embed[langchain]" langchain-chroma langchain-text-splitters; --chat also langchain-openai.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_text_splitters import RecursiveCharacterTextSplitter

from gguf_embed.integrations.langchain import GGUFEmbeddings

PROMPT = ChatPromptTemplate.from_template(
    "Answer from these passages alone, and name the file that you have it from.\n\n{passages}\n\nQuestion: {question}"
)


def read_folder(folder: Path) -> list[Document]:
    """Cut every Markdown file below a folder into passages of at most 700 characters, at headings where it can."""
    splitter = RecursiveCharacterTextSplitter.from_language("markdown", chunk_size=700, chunk_overlap=80)
    paths = sorted(folder.rglob("*.md"))
    files = {str(path.relative_to(folder)): path.read_text(encoding="utf-8", errors="replace") for path in paths}
    return splitter.create_documents(list(files.values()), [{"file": name} for name in files])


def main() -> None:
    """Index the folder where that was not done before, find, and answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", help="a model reference; the configured one if not given")
    parser.add_argument("--store", type=Path, default=Path("rag.chroma"), help="where Chroma keeps vectors")
    parser.add_argument("--chat", metavar="URL", help="an OpenAI-compatible server of an LLM")
    parser.add_argument("--chat-model", default="default")
    options = parser.parse_args()

    # Code and tables take more tokens than their characters let expect: what is still too long is cut, with a warning.
    embeddings = GGUFEmbeddings(**({"model": options.model} if options.model else {}), truncate="end")
    # One collection for each folder and each kind of vectors: those of another model or quantization do not compare.
    fingerprint = embeddings.shared_model(embeddings.model).embedder.fingerprint
    name = hashlib.sha256(f"{options.folder.resolve()} {fingerprint}".encode()).hexdigest()[:32]
    space = {"hnsw:space": "cosine"}
    store = Chroma(name, embeddings, persist_directory=str(options.store), collection_metadata=space)
    if not store.get(limit=1)["ids"]:
        if not (passages := read_folder(options.folder)):
            parser.error(f"there is no Markdown with text in {options.folder}")
        store.add_documents(passages)
        print(f"{len(passages)} passages are in {options.store}")

    found = store.similarity_search_with_score(options.question, k=4)  # cosine distance: 0 is the same
    for passage, distance in found:
        print(f"{1 - distance:.2f}  {passage.metadata['file']}: {' '.join(passage.page_content.split())[:90]}")
    messages = PROMPT.invoke({
        "passages": "\n\n".join(f"[{one.metadata['file']}]\n{one.page_content}" for one, _ in found),
        "question": options.question,
    })  # fmt: skip
    if options.chat is None:
        print(f"\n--- what an LLM would be asked (--chat URL asks it) ---\n{messages.to_string()}")
        return
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - for those who have an LLM

    llm = ChatOpenAI(base_url=options.chat, model=options.chat_model, api_key="none")
    print(f"\n{llm.invoke(messages).content}")


if __name__ == "__main__":
    main()
