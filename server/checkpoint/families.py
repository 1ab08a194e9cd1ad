"""The table of known families, the more particular first: recognise.py takes the first row that a folder fits."""

from __future__ import annotations

from dataclasses import replace

from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.family import Family
from embedmux.server.contract import Contract, Prompts
from embedmux.server.records import Pooling

SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
JINA_PROMPTS = Prompts({"query": "Query: ", "document": "Document: "}, "document")
JINA_SIZES = (32, 64, 128, 256, 512, 768, 1024)


def _jina_v5_tasks(evidence: Evidence, contract: Contract) -> Contract:
    """The base repository computes nothing without one of its adapters, so all of them must be there."""
    tasks = evidence.config.strings("task_names")
    folder = evidence.folder
    for task in tasks:
        if not folder.has(f"adapters/{task}/adapter_config.json"):
            folder.reject(
                f"adapters/{task} is missing, config.json: task_names lists it; fetch the whole repository "
                "(the bare backbone gives other vectors)"
            )
    return replace(contract, tasks=tasks, adapters=folder.path / "adapters", needs_task=True)


def _qwen3_prompts(evidence: Evidence) -> bool:
    query = evidence.prompts.by_name.get("query", "")
    return query.startswith("Instruct: ") and query.endswith("\nQuery:")


FAMILIES = (
    Family(
        "jina-embeddings-v5",
        models="jinaai/jina-embeddings-v5-text-small, -nano",
        types=("jina_embeddings_v5",),
        marks=lambda evidence: True,
        prompts=JINA_PROMPTS,
        pooling=Pooling.LAST,
        sizes=JINA_SIZES,
        custom=("custom_st.Transformer",),
        complete=_jina_v5_tasks,
    ),
    Family(
        "jina-embeddings-v5-merged",
        models="jinaai/jina-embeddings-v5-text-{small,nano}-{retrieval,text-matching,clustering,classification}",
        types=("qwen3", "eurobert"),
        named=r"jina-embeddings-v5-text-(small|nano)-[a-z-]+",
        marks=lambda evidence: evidence.prompts == JINA_PROMPTS,
        prompts=JINA_PROMPTS,
        pooling=Pooling.LAST,
        sizes=JINA_SIZES,
    ),
    Family(
        "qwen3-embedding",
        models="Qwen/Qwen3-Embedding-{0.6B,4B,8B}",
        types=("qwen3",),
        named=r"qwen3-embedding-[\d.]+b",
        marks=_qwen3_prompts,
        prompts=Prompts({"query": f"Instruct: {SEARCH}\nQuery:", "document": ""}),
        template="Instruct: {instruction}\nQuery:",
        instruction=SEARCH,
        pooling=Pooling.LAST,
        any_size_from=32,
        max_tokens=32768,
        ending="<|endoftext|>",
    ),
    Family(
        "sentence-transformers",
        models="any model of a backbone above with a sentence-transformers layout, such as all-MiniLM-L6-v2",
        types=("bert", "xlm-roberta", "roberta", "modernbert", "qwen3", "qwen2", "mistral", "eurobert", "gte", "new"),
        marks=lambda evidence: True,
    ),
)
