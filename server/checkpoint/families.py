"""The table of known families, the more particular first: recognise.py takes the first row that a folder fits."""

from __future__ import annotations

from embedmux.server.checkpoint.decoders import DECODERS
from embedmux.server.checkpoint.encoders import ENCODERS
from embedmux.server.checkpoint.family import Family
from embedmux.server.checkpoint.late import LATE
from embedmux.server.checkpoint.rerankers import RERANKERS

GENERIC = Family(
    "sentence-transformers",
    models="any other model of these types with a sentence-transformers layout, such as all-MiniLM-L6-v2",
    types=("bert", "xlm-roberta", "roberta", "modernbert", "gte", "new", "nomic_bert", "qwen3", "qwen2", "mistral",
           "eurobert"),
    marks=lambda evidence: True,
)  # fmt: skip
FAMILIES = (*RERANKERS, *LATE, *DECODERS, *ENCODERS, GENERIC)
