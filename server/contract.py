"""What a checkpoint folder promises, whichever family it is of: how texts are read, pooled, sized and scored.

Plain values without torch: the front reads texts by it, the engine computes by it. ``server/checkpoint`` makes one from
a folder; nothing else knows families by name.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from embedmux.server.records import Output, Pooling

QUERY_NAMES = ("query",)
DOCUMENT_NAMES = ("document", "passage", "corpus")  # the order sentence-transformers' encode_document looks them up
EACH_TOKEN = frozenset({Output.SPARSE, Output.TOKENS})  # made of the states of all tokens, those of a prompt included


@dataclass(frozen=True, slots=True)
class Prompts:
    """Literal prefixes by name, and the name used when a request gives neither prompt nor role."""

    by_name: dict[str, str] = field(default_factory=dict)
    default_name: str | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """The prefixes of queries and of documents; empty where there is none."""
        return self._first(QUERY_NAMES), self._first(DOCUMENT_NAMES)

    def _first(self, names: tuple[str, ...]) -> str:
        return next((self.by_name[name] for name in names if name in self.by_name), "")


class ScoreKind(enum.Enum):
    """Where a reranker's raw logit comes from."""

    CLASSIFIER = "classifier"  # a one-label head on the pooled token
    LOGITS = "logits"  # the language model's logits of one or two tokens at the last position
    LISTWISE = "listwise"  # markers of all documents in one prompt, a projector and a cosine


class Activation(enum.Enum):
    """From raw logit to score."""

    SIGMOID = "sigmoid"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class ScoreContract:
    """How a reranker reads a query with a document, and what its number means.

    ``before`` and ``after`` frame a document: ``before`` is a format of {instruction} and {query}; None for both means
    the tokenizer's own pair. ``strips`` removes white space around both texts. score = activation(logit / temperature).
    """

    kind: ScoreKind
    activation: Activation = Activation.SIGMOID
    temperature: float = 1.0
    before: str | None = None
    after: str | None = None
    instruction: str = ""  # the default; empty where the template has none
    strips: bool = False
    positive_token: int | None = None  # LOGITS: logit = positive - negative, or positive alone
    negative_token: int | None = None


@dataclass(frozen=True, slots=True)
class LateContract:
    """Token vectors for late interaction: what is added to a text, and which tokens have a vector.

    ``query_tokens``: queries are filled with the mask token up to this many tokens; None leaves them as they are.
    ``skipped`` are ids whose vectors documents leave out, such as punctuation. ``skips_first`` drops the first token
    of either side. ``is_mean`` divides a MaxSim score by the number of query tokens. ``kept``: only tokens of these ids
    have a vector, () for all. ``query_marker`` and ``document_marker`` are the ids of prefixes that are one token: they
    stand behind the text's first token, and the prefix is then empty. ``query_tokens`` counts them, as max_tokens does.
    ``is_normalized``: vectors have length one.
    """

    dimensions: int
    query_prefix: str = ""
    document_prefix: str = ""
    query_marker: int | None = None
    document_marker: int | None = None
    query_tokens: int | None = None
    mask_token: int | None = None
    attends_to_expansion: bool = True
    skipped: tuple[int, ...] = ()
    skips_first: bool = False
    is_mean: bool = False
    kept: tuple[int, ...] = ()
    is_normalized: bool = True


@dataclass(frozen=True, slots=True)
class Contract:
    """One model as it must be served.

    ``sizes`` are the dimensions the model declares, the full one first. ``template`` is a format of {instruction} for
    free instructions, put before a query; None where the family has none. ``suffix`` stands literally behind every
    text, and ``ending`` is the token id every text must end with once tokenised (None: as the tokenizer has it),
    ``beginning`` likewise. ``tasks`` names the adapters the checkpoint must bring, below ``adapters``; with
    ``needs_task`` a text without task or adapter is refused. ``dense_modules`` are folders of linears behind the
    pooling, ``projections`` a file of chained matrices to smaller sizes. Without ``takes_prompts`` the pooling would
    have to leave a prompt's tokens out, which is not computed: a request that brings a prompt is refused.
    """

    family: str
    architecture: str  # the backbone that computes it: a key of server/backbones
    max_tokens: int
    pooling: Pooling
    sizes: tuple[int, ...]
    any_size_from: int | None = None  # any size from here up to the full one is declared too
    prompts: Prompts = Prompts()
    takes_prompts: bool = True
    template: str | None = None
    default_instruction: str = ""  # what the template's query prompt says when the request gives none
    suffix: str = ""
    beginning: int | None = None
    ending: int | None = None
    outputs: tuple[Output, ...] = (Output.DENSE,)
    sparse_ignored: tuple[int, ...] = ()  # ids without a sparse weight: the special tokens
    late: LateContract | None = None
    score: ScoreContract | None = None
    adapters: Path | None = None
    tasks: tuple[str, ...] = ()
    needs_task: bool = False
    dense_modules: tuple[str, ...] = ()
    projections: str | None = None
    vocabulary: int | None = None  # rows of the token embedding: a tokenizer may know ids beyond it
    norms_before_cut: bool = False  # smaller sizes are cut behind a layer norm without weights over the full vector

    @property
    def dimensions(self) -> int:
        """The full size of the dense vector."""
        return self.sizes[0]

    @property
    def pooled(self) -> Pooling | None:
        """Which token's state leaves the last layer; None where those of all tokens do."""
        return None if self.pooling is Pooling.MEAN or EACH_TOKEN.intersection(self.outputs) else self.pooling

    @property
    def shares_prefixes(self) -> bool:
        """Whether a causal backbone may leave out tokens that texts share: no output needs their states."""
        return not EACH_TOKEN.issuperset(self.outputs)

    @property
    def unread_token(self) -> int | None:
        """The token that fills up queries of late interaction, where the other tokens do not attend to it."""
        return self.late.mask_token if self.late is not None and not self.late.attends_to_expansion else None

    def declares(self, dimensions: int) -> bool:
        """Whether the model says that vectors of this size are good ones."""
        low = self.any_size_from
        return dimensions in self.sizes or (low is not None and low <= dimensions <= self.dimensions)
