"""A model folder -> the contract it must be served by, and how that was found out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from embedmux.server.checkpoint.architectures import ARCHITECTURES, foreign_code, hidden_size
from embedmux.server.checkpoint.evidence import Evidence, gather
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.recognise import recognise
from embedmux.server.contract import Contract, Prompts
from embedmux.server.records import Pooling

MAX_TOKENIZER_LIMIT = 1 << 24  # tokenizers without a limit say 1e30


@dataclass(frozen=True, slots=True)
class Reading:
    """A contract and where it comes from; ``notes`` are what a person should know before serving it."""

    contract: Contract
    recognised: str
    prompts_from: str
    notes: tuple[str, ...] = ()


def read_contract(folder: Path) -> Contract:
    """How the model in a folder must be served; only JSON is read.

    Raises ModelRejected, naming the file and the cause, for anything this version does not compute exactly.
    """
    return read(folder).contract


def read(folder: Path) -> Reading:
    """The same, with its reasons."""
    evidence = gather(ModelFolder(folder))
    if evidence.model_type not in ARCHITECTURES:
        evidence.config.reject("model_type", f"one of {', '.join(sorted(ARCHITECTURES))}")
    family, recognised = recognise(evidence)
    if family.refusal is not None:
        evidence.folder.reject(f"{family.name} is not served: {family.refusal}")
    architecture = ARCHITECTURES[evidence.model_type]
    _check_code(evidence, family)
    dimensions = evidence.modules.dense[-1].out_features if evidence.modules.dense else hidden_size(evidence.config)
    contract = Contract(
        family=family.name,
        architecture=architecture.backbone,
        max_tokens=_max_tokens(evidence, family),
        pooling=_pooling(evidence, family),
        sizes=_sizes(evidence, family, dimensions),
        any_size_from=family.any_size_from,
        prompts=_prompts(evidence, family),
        template=family.template,
        default_instruction=family.instruction,
        beginning=evidence.tokens.require(family.beginning) if family.beginning else None,
        ending=evidence.tokens.require(family.ending) if family.ending else None,
        dense_modules=tuple(dense.folder for dense in evidence.modules.dense),
    )
    contract = family.complete(evidence, contract)
    return Reading(contract, recognised, _prompts_from(evidence, family))


def _check_code(evidence: Evidence, family: Family) -> None:
    """Refuses code of the checkpoint's own that computes something nobody here knows."""
    allowed = (*ARCHITECTURES[evidence.model_type].code, *family.code)
    if foreign := foreign_code(evidence.config, allowed):
        evidence.folder.reject(
            f"config.json: auto_map names code of its own ({', '.join(foreign)}), which is never run and may compute "
            f"something other than {evidence.model_type}"
        )
    if unknown := [name for name in evidence.modules.custom if name not in family.custom]:
        evidence.folder.reject(
            f"modules.json: {unknown[0]} is code of the checkpoint's own, which is never run; "
            f"{family.name} is not known to need it"
        )


def _max_tokens(evidence: Evidence, family: Family) -> int:
    """What the positions allow, within the limit of sentence-transformers, else of the tokenizer, and the family's."""
    limits = [ARCHITECTURES[evidence.model_type].positions(evidence.config)]
    sentences = evidence.folder.config("sentence_bert_config.json", optional=True)
    tokenizer = evidence.folder.config("tokenizer_config.json", optional=True)
    if sentences.get("max_seq_length") is not None:
        limits.append(sentences.integer("max_seq_length"))
    elif tokenizer.number("model_max_length", MAX_TOKENIZER_LIMIT) < MAX_TOKENIZER_LIMIT:
        limits.append(tokenizer.integer("model_max_length"))
    if family.max_tokens is not None:
        limits.append(family.max_tokens)
    return min(limits)


def _pooling(evidence: Evidence, family: Family) -> Pooling:
    found = evidence.modules.pooling or family.pooling
    if found is not None:
        return found
    if ARCHITECTURES[evidence.model_type].backbone == "decoder":
        evidence.folder.reject("modules.json names no pooling, and nothing else says how its tokens become one vector")
    return Pooling.MEAN  # what sentence-transformers does with a bare encoder


def _sizes(evidence: Evidence, family: Family, dimensions: int) -> tuple[int, ...]:
    """The full size first, then what config.json or the family declares, largest first."""
    config = evidence.config
    for key in ("matryoshka_dimensions", "matryoshka_dims"):
        if config.get(key) is not None:
            named = config.values[key]
            if not isinstance(named, list) or not all(type(size) is int and size > 0 for size in named):
                config.reject(key, "a list of whole numbers above 0")
            break
    else:
        named = list(family.sizes)
    return (dimensions, *sorted({size for size in named if size < dimensions}, reverse=True))


def _prompts(evidence: Evidence, family: Family) -> Prompts:
    """The checkpoint's own prompts, and the family's under names it does not use."""
    own = evidence.prompts
    merged = replace(family.prompts, by_name={**family.prompts.by_name, **own.by_name})
    return replace(merged, default_name=own.default_name) if own.by_name else merged


def _prompts_from(evidence: Evidence, family: Family) -> str:
    if evidence.prompts.by_name:
        return "config_sentence_transformers.json"
    return f"the table of known families ({family.name})" if family.prompts.by_name else "none are known"
