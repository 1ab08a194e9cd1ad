"""A model folder -> the contract it must be served by, and how that was found out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedmux.server.checkpoint.architectures import ARCHITECTURES, hidden_size
from embedmux.server.checkpoint.evidence import Evidence, gather
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.notes import notes_on
from embedmux.server.checkpoint.recognise import recognise
from embedmux.server.contract import Contract, Prompts
from embedmux.server.records import Pooling

NO_LIMIT = 1 << 24  # tokenizers without a limit say 1e30
SIZE_KEYS = ("matryoshka_dimensions", "matryoshka_dims")


@dataclass(frozen=True, slots=True)
class Reading:
    """A contract and where it comes from; ``notes`` are what a person should know before serving it."""

    contract: Contract
    recognised: str
    prompts_from: str
    notes: tuple[str, ...] = ()


def read_contract(folder: Path) -> Contract:
    """How the model in a folder must be served; only JSON and headers of safetensors are read.

    Raises ModelRejected, naming the file and the cause, for anything this version does not compute exactly.
    """
    return read(folder).contract


def read(folder: Path) -> Reading:
    """The same, with its reasons."""
    evidence = gather(ModelFolder(folder.absolute()))
    family, recognised = recognise(evidence)
    dense = evidence.modules.dense
    prompts = _prompts(evidence, family)
    contract = Contract(
        family=family.name,
        architecture=ARCHITECTURES[evidence.model_type].backbone,
        max_tokens=_max_tokens(evidence, family),
        pooling=_pooling(evidence, family),
        sizes=_sizes(evidence, family, dense[-1].out_features if dense else hidden_size(evidence.config)),
        any_size_from=family.any_size_from,
        prompts=prompts,
        takes_prompts=_takes_prompts(evidence, prompts),
        template=family.template,
        default_instruction=family.instruction,
        beginning=evidence.tokens.require(family.beginning) if family.beginning else None,
        ending=evidence.tokens.require(family.ending) if family.ending else None,
        dense_modules=tuple(module.folder for module in dense),
        vocabulary=_vocabulary(evidence),
    )
    _check_lower_case(evidence)
    contract = family.complete(evidence, contract)
    return Reading(contract, recognised, _prompts_from(evidence, family), tuple(notes_on(evidence, contract)))


def _vocabulary(evidence: Evidence) -> int | None:
    """Rows of the token embedding, where config.json says it."""
    return evidence.config.integer("vocab_size") if evidence.config.get("vocab_size") is not None else None


def _max_tokens(evidence: Evidence, family: Family) -> int:
    """What the positions allow, within the limit of sentence-transformers, else of the tokenizer, and the family's."""
    limits = [ARCHITECTURES[evidence.model_type].positions(evidence.config)]
    if evidence.sentences.get("max_seq_length") is not None:
        limits.append(evidence.sentences.integer("max_seq_length"))
    elif evidence.tokenizer.number("model_max_length", NO_LIMIT) < NO_LIMIT:
        limits.append(evidence.tokenizer.integer("model_max_length"))
    if family.max_tokens is not None:
        limits.append(family.max_tokens)
    return min(limits)


def _pooling(evidence: Evidence, family: Family) -> Pooling:
    found = evidence.modules.pooling or family.pooling
    if found is not None:
        return found
    if ARCHITECTURES[evidence.model_type].backbone == "decoder":
        evidence.folder.reject(
            "modules.json names no pooling, and nothing else says how tokens become one vector; if this is a published "
            "model, a directory named like it is recognised by that"
        )
    return Pooling.MEAN  # what sentence-transformers does with a bare encoder


def _sizes(evidence: Evidence, family: Family, dimensions: int) -> tuple[int, ...]:
    """The full size first, then what config.json or the family declares, largest first."""
    config = evidence.config
    key = next((key for key in SIZE_KEYS if config.get(key) is not None), None)
    if key is None:
        named = list(family.sizes)
    else:
        named = config.values[key]
        if not isinstance(named, list) or not all(type(size) is int and size > 0 for size in named):
            config.reject(key, "a list of whole numbers above 0")
    return (dimensions, *sorted({size for size in named if size < dimensions}, reverse=True))


def _prompts(evidence: Evidence, family: Family) -> Prompts:
    """The checkpoint's own prompts, and the family's under names it does not use."""
    own, known = evidence.prompts, family.prompts
    if not own.by_name:
        return known
    return replace(own, by_name={**known.by_name, **own.by_name})


def _takes_prompts(evidence: Evidence, prompts: Prompts) -> bool:
    """Whether prompts may be given. A last token is pooled whatever stands before it; other poolings would change."""
    modules = evidence.modules
    if modules.includes_prompt or modules.pooling is Pooling.LAST:
        return True
    if any(prompts.by_name.values()):
        evidence.folder.reject(
            "1_Pooling/config.json: include_prompt is false and the model has prompts: their tokens would have to be "
            "left out of the pooling, which is not computed"
        )
    return False


def _prompts_from(evidence: Evidence, family: Family) -> str:
    if evidence.prompts.by_name:
        return "config_sentence_transformers.json"
    return f"the table of known families ({family.name})" if family.prompts.by_name else "none are known"


def _check_lower_case(evidence: Evidence) -> None:
    """Refuses texts in lower case where the tokenizer would not do that by itself."""
    if evidence.sentences.flag("do_lower_case", False) and not _lowers(evidence.folder.tokenizer().get("normalizer")):
        evidence.sentences.reject("do_lower_case", "false, or the tokenizer's own normalizer must do it")


def _lowers(normalizer: Any) -> bool:
    if not isinstance(normalizer, dict):
        return False
    if normalizer.get("type") == "Sequence":
        return any(_lowers(part) for part in normalizer.get("normalizers") or [])
    return normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True
