"""What a person should know of a contract before serving it."""

from __future__ import annotations

from collections.abc import Iterator

from embedmux.server.checkpoint.encoders import COLBERT, SPARSE
from embedmux.server.checkpoint.evidence import Evidence
from embedmux.server.contract import Contract
from embedmux.server.records import Output


def notes_on(evidence: Evidence, contract: Contract) -> Iterator[str]:
    """One line each."""
    for output, name in ((Output.SPARSE, SPARSE), (Output.TOKENS, COLBERT)):
        if evidence.folder.has(f"{name}.pt") and output not in contract.outputs:
            yield (
                f"{name}.pt is a pickle, which is never read at serving: `embedmux convert DIR` makes "
                f"{name}.safetensors, and with it the output {output.value}"
            )
        elif contract.family == "bge-m3" and output not in contract.outputs:
            yield (
                f"{name}.pt is not here: copy it into the folder, then `embedmux convert DIR` makes the head of the "
                f"output {output.value}"
            )
    if Output.DENSE not in contract.outputs:
        return
    modules = evidence.modules
    if modules.pooling is None and contract.family == "sentence-transformers":
        yield f"nothing names a pooling; {contract.pooling.value} is taken, as sentence-transformers does"
    if modules.is_listed and not modules.normalizes and not modules.custom:
        yield "modules.json has no Normalize; vectors are brought to length one all the same, which no cosine sees"
    if not contract.prompts.by_name and contract.takes_prompts:
        yield "no prompts are known: texts are embedded as they are, unless a request brings a prompt"
    if not contract.takes_prompts:
        yield "its pooling leaves a prompt's tokens out, so requests cannot bring one"
