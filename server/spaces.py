"""What makes vectors comparable, as one short id.

A space follows from what determines where a vector lies: the backbone's weights, the adapter's weights, the pair of
prompts of the task, the size, the pooling and the normalisation. It does not follow from how the numbers are computed
(dtype, device, merged or low-rank placement), which moves a vector by rounding only.
"""

import hashlib
import json


def space_id(
    label: str, *, backbone: str, adapter: str | None, prompts: tuple[str, str], dimensions: int, pooling: str
) -> str:
    """``<label>-<dimensions>-<12 hex digits>``; the label is for readers, the digits decide.

    ``backbone`` and ``adapter`` are SHA-256 digests of weights in hex; ``prompts`` are the query's and the document's.
    """
    facts = json.dumps([backbone, adapter, *prompts, dimensions, pooling, "l2"], ensure_ascii=False)
    return f"{label}-{dimensions}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
