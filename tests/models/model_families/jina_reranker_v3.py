"""jina-reranker-v3: all documents and the query in one prompt, the states at their markers projected and compared.

The published remote code, restated: the block's query vector is weighted by its best document before documents of all
blocks are compared with the mean of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from model_families.decoder_layout import (
    Shape,
    end_of,
    plan_of,
    qwen_config,
    qwen_tokenizer,
    write_qwen_tokenizer,
)
from model_families.decoder_mutants import QWEN3, Mutant, of, weights
from model_families.decoder_reference import open_model
from model_families.family import Family, Size, Vectors
from model_families.files import write_json
from model_families.weights import Plan, Tensors, linear, write_weights

SHAPE = Shape(positions=131072)
DOCUMENT_MARK, QUERY_MARK = "<|embed_token|>", "<|rerank_token|>"
BLOCK = 125  # documents
PROJECTOR = frozenset({"projector.0.weight", "projector.2.weight"})
MAX_DOCUMENT, MAX_QUERY = 2048, 512  # tokens
HEAD = (
    "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based on how "
    "relevant they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
    "the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
    "<|im_end|>\n<|im_start|>user\nI will provide you with {count} passages, each indicated by a numerical identifier. "
    "Rank the passages based on their relevance to query: {query}\n"
)
TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def plan_with_projector(shape: Shape) -> Plan:
    """``model.`` names and the projector: to half the hidden size, ReLU, to half again for tiny ones, 512 published."""
    half = shape.hidden // 2
    plan = {f"model.{name}": drawn for name, drawn in plan_of(shape).items()}
    return {
        **plan,
        "projector.0.weight": linear(half, shape.hidden),
        "projector.2.weight": linear(min(512, half), half),
    }


def build(folder: Path, size: Size, seed: int) -> None:
    """The repository; its code is named in the config and not part of it here."""
    shape = SHAPE.sized(size, positions=8192)
    tokenizer = qwen_tokenizer(more=(DOCUMENT_MARK, QUERY_MARK))
    folder.mkdir(parents=True)
    config = qwen_config(shape, "JinaForRanking", end_of(tokenizer))
    write_json(folder / "config.json", {**config, "auto_map": {"AutoModel": "modeling.JinaForRanking"}})
    write_weights(folder / "model.safetensors", plan_with_projector(shape), seed, torch.bfloat16)
    write_qwen_tokenizer(folder, tokenizer)


class ListwiseReference:
    """Cosines of documents with a query, in blocks of at most 125 documents."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = open_model(folder, transformers.Qwen3Model, heads=PROJECTOR)
        tensors = load_file(folder / "model.safetensors")
        self.projector = [tensors[f"projector.{i}.weight"].float() for i in (0, 2)]

    def cut(self, text: str, limit: int) -> tuple[str, int]:
        """The text without markers, cut to ``limit`` tokens, and how many it has."""
        ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        if len(ids) >= limit:
            text = self.tokenizer.decode(ids)
        return text.replace(DOCUMENT_MARK, "").replace(QUERY_MARK, ""), len(ids)

    def list_ids(self, query: str, documents: list[str]) -> list[int]:
        """The prompt of one block."""
        passages = [f'<passage id="{i}">\n{text}{DOCUMENT_MARK}\n</passage>' for i, text in enumerate(documents)]
        text = HEAD.format(count=len(documents), query=query) + "\n".join(passages) + "\n"
        text += f"<query>\n{query}{QUERY_MARK}\n</query>" + TAIL
        return list(self.tokenizer(text)["input_ids"])

    def pair_ids(self, query: str, document: str) -> list[int]:
        """The prompt of a list of one."""
        return self.list_ids(query, [document])

    def project(self, ids: list[int], mark: str) -> torch.Tensor:
        """[markers, size]."""
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            states = self.model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        found = states[tokens[0] == self.tokenizer.convert_tokens_to_ids(mark)]
        return torch.relu(found @ self.projector[0].T) @ self.projector[1].T

    def score(self, query: str, documents: list[str], *, block: int = BLOCK) -> Vectors:
        """[n] cosines; ``block`` is the most documents of one prompt."""
        query, length = self.cut(query, MAX_QUERY)
        whole = self.tokenizer.model_max_length - 2 * length
        blocks: list[list[str]] = [[]]
        left = whole
        for text, tokens in (self.cut(document, MAX_DOCUMENT) for document in documents):
            if len(blocks[-1]) >= block or (blocks[-1] and left <= MAX_DOCUMENT):
                blocks.append([])
                left = whole
            blocks[-1].append(text)
            left -= tokens
        queries, vectors, shares = [], [], []
        for texts in blocks:
            ids = self.list_ids(query, texts)
            asked, found = self.project(ids, QUERY_MARK)[0], self.project(ids, DOCUMENT_MARK)
            best = torch.nn.functional.cosine_similarity(found, asked[None]).max()
            queries.append(asked.numpy())
            vectors.append(found.numpy())
            shares.append(float((1 + best) / 2))
        mean, rows = np.average(queries, axis=0, weights=shares), np.concatenate(vectors)
        return rows @ mean / np.linalg.norm(mean) / np.linalg.norm(rows, axis=1)

    def attentions(self, text: str) -> list[Vectors]:
        """[heads, tokens, tokens] of every layer, to see whether they are peaked."""
        with torch.inference_mode():
            ids = torch.tensor([self.pair_ids("river", text)])
            found = self.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
        return [layer[0].numpy() for layer in found]


def _no_second(tensors: Tensors, config: dict[str, object]) -> None:
    second = tensors["projector.2.weight"]
    tensors["projector.2.weight"] = torch.eye(*second.shape, dtype=second.dtype)


def _exchange_marks(tensors: Tensors, config: dict[str, object]) -> None:
    tokenizer = qwen_tokenizer(more=(DOCUMENT_MARK, QUERY_MARK))
    rows = [tokenizer.token_to_id(mark) for mark in (DOCUMENT_MARK, QUERY_MARK)]
    (words,) = of(tensors, "embed_tokens.weight")
    tensors[words][rows] = tensors[words][rows[::-1]]


MUTANTS: dict[str, Mutant] = {
    **QWEN3,
    "second_projection_ignored": weights(_no_second),
    "marks_exchanged": weights(_exchange_marks),
}
FAMILIES = (
    Family(
        name="jina-reranker-v3",
        kind="reranker",
        build=build,
        reference=ListwiseReference,
        mutants=MUTANTS,
        outputs=("score",),
        has_full=True,
    ),
)
