"""Known embedders on decoders: Jina v5, Qwen3-Embedding, zEmbed, e5-mistral, and one that is refused."""

from __future__ import annotations

from dataclasses import replace

from embedmux.server.checkpoint.architectures import hidden_size
from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.headers import file_shapes
from embedmux.server.contract import Contract, Prompts
from embedmux.server.records import Pooling

SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
JINA_PROMPTS = Prompts({"query": "Query: ", "document": "Document: "}, "document")
JINA_SIZES = (32, 64, 128, 256, 512, 768, 1024)
ZEMBED_MODULE = "modeling_zembed.ZembedTransformer"
ZEMBED_FRAME = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n"
ZEMBED_SUFFIX = "<|im_end|>\n"
PROJECTIONS = "projections.safetensors"


def _adapters(evidence: Evidence, contract: Contract) -> Contract:
    """Jina v5's base repository computes nothing without one of its adapters, so all of them must be there."""
    folder, tasks = evidence.folder, evidence.config.strings("task_names")
    for task in tasks:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            if not folder.has(f"adapters/{task}/{file}"):
                folder.reject(
                    f"adapters/{task}/{file} is missing, and config.json lists {task!r} in task_names; fetch the whole "
                    "repository, since the bare backbone gives other vectors"
                )
    return replace(contract, tasks=tasks, adapters=folder.path / "adapters", needs_task=True)


def _is_qwen3_embedding(evidence: Evidence) -> bool:
    query = evidence.prompts.by_name.get("query", "")
    return query.startswith("Instruct: ") and query.endswith("\nQuery:")


def _is_zembed(evidence: Evidence) -> bool:
    return ZEMBED_MODULE in evidence.modules.custom or evidence.folder.has(PROJECTIONS)


def _zembed(evidence: Evidence, contract: Contract) -> Contract:
    """Its frame ends behind the text; smaller sizes are learned projections, so no slice is declared."""
    contract = replace(contract, suffix=evidence.settings.string("suffix", ZEMBED_SUFFIX))
    if not evidence.folder.has(PROJECTIONS):
        return contract
    return replace(contract, sizes=_chained_sizes(evidence), projections=PROJECTIONS)


def _chained_sizes(evidence: Evidence) -> tuple[int, ...]:
    """The full size and those reached from it, each matrix starting at the size that the one before leads to."""
    left = dict(file_shapes(evidence.folder, PROJECTIONS))
    sizes = [hidden_size(evidence.config)]
    while left:
        steps = [(name, min(shape)) for name, shape in left.items() if len(shape) == 2 and max(shape) == sizes[-1]]
        if len(steps) != 1:
            evidence.folder.reject(
                f"{PROJECTIONS}: {len(steps)} matrices lead on from size {sizes[-1]}, among {sorted(left.items())[:3]}"
            )
        left.pop(steps[0][0])
        sizes.append(steps[0][1])
    return tuple(sizes)


def _is_e5_mistral(evidence: Evidence) -> bool:
    return evidence.prompts.by_name.get("web_search_query", "").startswith("Instruct: ")


DECODERS = (
    Family(
        "jina-embeddings-v5",
        models="jinaai/jina-embeddings-v5-text-{small,nano}, with their adapters",
        types=("jina_embeddings_v5",),
        marks=lambda evidence: True,
        prompts=JINA_PROMPTS,
        pooling=Pooling.LAST,
        sizes=JINA_SIZES,
        custom=("custom_st.Transformer",),
        complete=_adapters,
    ),
    Family(
        "zembed",
        models="zeroentropy/zembed-1",
        types=("qwen3",),
        named=r"zembed-1(-embedding)?",
        marks=_is_zembed,
        prompts=Prompts({name: ZEMBED_FRAME.format(name) for name in ("query", "document")}),
        pooling=Pooling.LAST,
        max_tokens=32768,
        custom=(ZEMBED_MODULE,),
        complete=_zembed,
    ),
    Family(
        "jina-embeddings-v5-merged",
        models="jinaai/jina-embeddings-v5-text-{small,nano}-{retrieval,text-matching,clustering,classification}",
        types=("qwen3", "eurobert"),
        named=r"jina-embeddings-v5-text-(small|nano)-(retrieval|text-matching|clustering|classification)",
        marks=lambda evidence: evidence.prompts.by_name == JINA_PROMPTS.by_name,
        prompts=JINA_PROMPTS,
        pooling=Pooling.LAST,
        sizes=JINA_SIZES,
    ),
    Family(
        "qwen3-embedding",
        models="Qwen/Qwen3-Embedding-{0.6B,4B,8B}",
        types=("qwen3",),
        named=r"qwen3-embedding-[\d.]+b",
        marks=_is_qwen3_embedding,
        prompts=Prompts({"query": f"Instruct: {SEARCH}\nQuery:", "document": ""}),
        template="Instruct: {instruction}\nQuery:",
        instruction=SEARCH,
        pooling=Pooling.LAST,
        any_size_from=32,
        max_tokens=32768,
        ending="<|endoftext|>",
    ),
    Family(
        "e5-mistral",
        models="intfloat/e5-mistral-7b-instruct",
        types=("mistral",),
        named="e5-mistral-7b-instruct",
        marks=_is_e5_mistral,
        prompts=Prompts({"query": f"Instruct: {SEARCH}\nQuery: "}),
        template="Instruct: {instruction}\nQuery: ",
        instruction=SEARCH,
        pooling=Pooling.LAST,
        max_tokens=4096,
        beginning="<s>",
        ending="</s>",
    ),
    Family(
        "gte-qwen2",
        models="Alibaba-NLP/gte-Qwen2-{1.5B,7B}-instruct",
        types=("qwen2",),
        named=r"gte-qwen2-[\d.]+b-instruct",
        refusal="its own code attends in both directions and transformers' class of the same model_type in one; until "
        "it is established which gives the published vectors, neither is guessed; Qwen3-Embedding is served",
    ),
)
