"""Which family a model folder is of."""

from __future__ import annotations

from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.checkpoint.families import FAMILIES
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.names import find_hint
from embedmux.server.errors import ModelRejected


def recognise(evidence: Evidence) -> tuple[Family, str]:
    """The first row of the table that the folder fits, and what it was recognised by.

    Raises ModelRejected where no row fits.
    """
    for family in FAMILIES:
        if evidence.model_type not in family.types:
            continue
        if family.marks(evidence):
            return family, f"config.json: model_type {evidence.model_type}, and what lies beside it"
        if family.named is None:
            continue
        if hint := find_hint(evidence.hints, family.named, with_base=family.refusal is not None):
            return family, f"{hint.source}: {hint.name}"
    raise ModelRejected(
        f"model {evidence.folder.name!r}: config.json: no known family of model_type {evidence.model_type!r} "
        "looks like this folder"
    )
