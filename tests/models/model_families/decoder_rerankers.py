"""Rerankers that read a language model's logits: Qwen3-Reranker and zerank-2, each also as a classifier with one label.

The classifier holds what the logits are made of: the head's row of Yes, or that of yes less that of no.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers

from model_families.decoder_layout import (
    Shape,
    end_of,
    plan_of,
    qwen_config,
    qwen_tokenizer,
    write_prompts,
    write_qwen_tokenizer,
)
from model_families.decoder_mutants import QWEN3, Mutant, of, setting, weights
from model_families.decoder_reference import open_model
from model_families.family import Family, Size, Vectors
from model_families.files import edit_json, read_json, write_json
from model_families.weights import Draw, write_shards, write_weights

SMALL = Shape(vocabulary=151669, positions=40960)
LARGE = Shape(layers=36, hidden=2560, heads=32, inner=9728, positions=40960)
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True)
class Frame:
    """How a reranker reads a pair; formats of {instruction}, {query} and {document}."""

    text: str
    yes: str
    no: str | None = None
    strips: bool = False


JUDGE = Frame(
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: {{instruction}}\n<Query>: {{query}}\n"
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    yes="yes",
    no="no",
)
ZERANK = Frame(
    "<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{document}<|im_end|>\n<|im_start|>assistant\n",
    yes="Yes",
    strips=True,
)


def build(
    folder: Path, size: Size, seed: int, *, shape: Shape, frame: Frame, is_classifier: bool = False, shards: int = 1
) -> None:
    """A repository. The language model has sentence-transformers' modules, the classifier only the model itself."""
    if size == "full" and shape is LARGE:
        raise ValueError("zerank-2 has 4 billion parameters; there is no full size here")
    shape = shape.sized(size)
    tokenizer = qwen_tokenizer()
    folder.mkdir(parents=True)
    head = "ForSequenceClassification" if is_classifier else "ForCausalLM"
    config = qwen_config(shape, f"Qwen3{head}", end_of(tokenizer))
    plan = {f"model.{name}": drawn for name, drawn in plan_of(shape).items()}
    if is_classifier:
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": end_of(tokenizer)}
        plan["score.weight"] = Draw((1, shape.hidden), 0.5)
    write_json(folder / "config.json", config)
    if shards > 1:
        write_shards(folder, plan, seed, torch.bfloat16, shards=shards)
    else:
        write_weights(folder / "model.safetensors", plan, seed, torch.bfloat16)
    write_qwen_tokenizer(folder, tokenizer)
    if is_classifier:
        return
    kinds = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (path, kind) in enumerate(zip(("", "1_LogitScore"), kinds, strict=True))
        ],
    )
    ids = {"true_token_id": tokenizer.token_to_id(frame.yes), "false_token_id": None}
    if frame.no is not None:
        ids["false_token_id"] = tokenizer.token_to_id(frame.no)
    write_json(folder / "1_LogitScore" / "config.json", ids)
    logits = {"method": "forward", "method_output_name": "logits"}
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation",
            "modality_config": {"text": logits, "message": {**logits, "format": "flat"}},
            "module_output_name": "causal_logits",
        },
    )
    prompts = {"query": INSTRUCTION} if "{instruction}" in frame.text else {}
    more = {"model_type": "CrossEncoder", "activation_fn": IDENTITY}
    write_prompts(folder, prompts, "query" if prompts else None, **more)


class LogitReference:
    """The raw logit at the last position of the frame, one pair at a time."""

    def __init__(self, folder: Path, *, frame: Frame) -> None:
        self.frame = frame
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.is_classifier = "ForSequenceClassification" in read_json(folder / "config.json")["architectures"][0]
        kind = transformers.Qwen3ForSequenceClassification if self.is_classifier else transformers.Qwen3ForCausalLM
        self.model = open_model(folder, kind)
        scores, settings = folder / "1_LogitScore" / "config.json", folder / "config_sentence_transformers.json"
        self.tokens = read_json(scores) if scores.exists() else {}
        self.instruction = read_json(settings)["prompts"].get("query", "") if settings.exists() else INSTRUCTION

    def pair_ids(self, query: str, document: str, *, instruction: str | None = None) -> list[int]:
        """The frame around both, in one go; no other special tokens."""
        if self.frame.strips:
            query, document = query.strip(), document.strip()
        wanted = self.instruction if instruction is None else instruction
        text = self.frame.text.format(instruction=wanted, query=query, document=document)
        return list(self.tokenizer(text)["input_ids"])

    def score(self, query: str, documents: list[str], *, instruction: str | None = None) -> Vectors:
        """[n] raw logits: that of yes, less that of no where there is one."""
        found = []
        for document in documents:
            ids = torch.tensor([self.pair_ids(query, document, instruction=instruction)])
            with torch.inference_mode():
                logits = self.model(input_ids=ids, use_cache=False).logits[0]
            if self.is_classifier:
                found.append(float(logits[0]))
            else:
                negative = self.tokens["false_token_id"]
                less = 0.0 if negative is None else float(logits[-1, negative])
                found.append(float(logits[-1, self.tokens["true_token_id"]]) - less)
        return np.array(found)

    def attentions(self, text: str) -> list[Vectors]:
        """[heads, tokens, tokens] of every layer, to see whether they are peaked."""
        with torch.inference_mode():
            ids = torch.tensor([self.pair_ids(text, text)])
            found = self.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
        return [layer[0].numpy() for layer in found]


def _exchange_tokens(folder: Path) -> None:
    def exchange(found: dict[str, int]) -> None:
        found["true_token_id"], found["false_token_id"] = found["false_token_id"], found["true_token_id"]

    edit_json(folder / "1_LogitScore" / "config.json", exchange)


LOGITS: dict[str, Mutant] = {
    "next_token": lambda folder: edit_json(
        folder / "1_LogitScore" / "config.json", lambda found: found.update(true_token_id=found["true_token_id"] + 1)
    )
}
YES_AND_NO: dict[str, Mutant] = {
    "tokens_exchanged": _exchange_tokens,
    "only_yes": setting("1_LogitScore/config.json", false_token_id=None),
    "other_instruction": lambda folder: write_prompts(folder, {"query": "Given a query"}, "query"),
}
CLASSIFIER: dict[str, Mutant] = {
    "score_negated": weights(
        lambda tensors, config: tensors.update({name: -tensors[name] for name in of(tensors, "score.weight")})
    )
}


def family(name: str, shape: Shape, frame: Frame, mutants: dict[str, Mutant], *, shards: int = 1) -> Family:
    """One of the rerankers; a name that ends in -seq-cls or -reranker is the classifier."""
    is_classifier = "score_negated" in mutants
    return Family(
        name=name,
        kind="reranker",
        build=partial(build, shape=shape, frame=frame, is_classifier=is_classifier, shards=shards),
        reference=partial(LogitReference, frame=frame),
        mutants={**QWEN3, **mutants},
        outputs=("score",),
        has_full=name == "qwen3-reranker-0.6b",
    )


FAMILIES = (
    family("qwen3-reranker-0.6b", SMALL, JUDGE, {**LOGITS, **YES_AND_NO}),
    family("qwen3-reranker-0.6b-seq-cls", SMALL, JUDGE, CLASSIFIER),
    family("zerank-2", LARGE, ZERANK, LOGITS, shards=2),
    family("zerank-2-reranker", LARGE, ZERANK, CLASSIFIER, shards=2),
)
