"""Which family a model folder is of."""

from __future__ import annotations

from embedmux.server.checkpoint.architectures import ARCHITECTURES, own_classes
from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.families import FAMILIES
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.names import find_hint
from embedmux.server.errors import ModelRejected


def recognise(evidence: Evidence) -> tuple[Family, str]:
    """The first row of the table that the folder fits, and what it was recognised by.

    Raises ModelRejected where no row fits, where the row says that the family is not served, and where the folder
    brings code that computes something nobody here knows.
    """
    family, reason = _first_fit(evidence)
    if family.refusal is not None:
        evidence.folder.reject(f"{family.name} ({reason}) is not served: {family.refusal}")
    _check_code(evidence, family)
    return family, reason


def _first_fit(evidence: Evidence) -> tuple[Family, str]:
    for family in FAMILIES:
        if evidence.model_type not in family.types:
            continue
        if family.named is not None:
            hint = find_hint(evidence.hints, family.named, with_base=family.refusal is not None)
            if hint is not None:
                return family, f"{hint.source}: {hint.name}"
        if family.marks(evidence):
            return family, "what its files say"
    raise ModelRejected(
        f"model {evidence.folder.name!r}: config.json: model_type {evidence.model_type!r} is computed, but no known "
        "family of it looks like this folder; a directory named like the published model is recognised by that"
    )


def _check_code(evidence: Evidence, family: Family) -> None:
    allowed = (*ARCHITECTURES[evidence.model_type].code, *family.code)
    if foreign := [name for name in own_classes(evidence.config) if not name.startswith(allowed)]:
        evidence.folder.reject(
            f"config.json: auto_map names code of its own ({', '.join(foreign)}), which is never run and may compute "
            f"something other than {evidence.model_type}"
        )
    if unknown := [name for name in evidence.modules.custom if name not in family.custom]:
        evidence.folder.reject(
            f"modules.json: {unknown[0]} is code of the checkpoint's own, which is never run and may compute something "
            f"other than {family.name}"
        )
