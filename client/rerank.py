"""Reranking: the request, and the ranked documents of the reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from embedmux.client.errors import UnexpectedReply, first_error, text_error
from embedmux.client.texts import TRUNCATES, ErrorPolicy, TruncateName, check_policy, choice, refuse_unknown, valid
from embedmux.proto import rerank_pb2
from embedmux.server.errors import EmbedmuxError, InvalidRequest


class RerankOptions(TypedDict, total=False):
    """Options of ``rerank``.

    ``instruction`` are free words for the model's template, None its default; ``top_n`` None returns every document;
    ``truncate`` is for documents over the model's limit; ``echo`` also returns the exact text the model read;
    ``model`` None is the server's first reranker.
    """

    instruction: str | None
    top_n: int | None
    truncate: TruncateName
    echo: bool
    model: str | None


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document of a ranking. ``index`` is its place in the call; ``score`` is the activated ``logit``.

    num_tokens and num_tokens_original count query and template too; they differ where the document was truncated.
    ``rendered`` is empty unless ``echo`` was set.
    """

    index: int
    document: str
    score: float
    logit: float
    num_tokens: int
    num_tokens_original: int
    rendered: str = ""

    @property
    def is_truncated(self) -> bool:
        """Whether the model read fewer tokens than there were."""
        return self.num_tokens < self.num_tokens_original


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents by score, best first, equal scores by index; failed ones are in ``errors`` by their index instead.

    ``activation`` says how ``model`` makes a score of a logit: sigmoid or identity.
    """

    documents: tuple[RankedDocument, ...]
    model: str = ""
    activation: str = ""
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of ranked documents."""
        return len(self.documents)

    def __iter__(self) -> Iterator[RankedDocument]:
        """The ranked documents, best first."""
        return iter(self.documents)

    def __getitem__(self, place: int) -> RankedDocument:
        """The document at a place of the ranking; 0 is the best."""
        return self.documents[place]


def rerank_request(query: str, documents: Sequence[str], options: RerankOptions) -> rerank_pb2.RerankRequest:
    """One request. Raises InvalidRequest for what no server could take."""
    refuse_unknown(options, RerankOptions)
    if isinstance(documents, str):
        raise InvalidRequest("documents is a str, it must be a list of them; put a single document into a list")
    top_n = options.get("top_n")
    if top_n is not None and top_n < 1:
        raise InvalidRequest(f"top_n is {top_n}, it must be at least 1; leave it out for all documents")
    for text in (query, *documents):
        if not isinstance(text, str):
            raise InvalidRequest(f"query and documents must be str, not {type(text).__name__}")
    instruction = options.get("instruction")
    return rerank_pb2.RerankRequest(
        query=valid("query", query),
        documents=[valid(f"document {index}", document) for index, document in enumerate(documents)],
        instruction=None if instruction is None else valid("instruction", instruction),
        truncate=choice("truncate", options.get("truncate", "none"), TRUNCATES),
        model=options.get("model") or "",
        top_n=top_n or 0,
        echo=options.get("echo", False),
    )


def ranking(reply: rerank_pb2.RerankResponse, request: rerank_pb2.RerankRequest, errors: ErrorPolicy) -> Ranking:
    """The ranking of a reply. Raises UnexpectedReply if it does not fit the request, or, by policy, the first error."""
    check_policy(errors)
    num_documents = len(request.documents)
    failed = {error.index: text_error(error) for error in reply.errors}
    indices = [found.index for found in reply.results]
    named = {*indices, *failed}
    num_expected = min(request.top_n or num_documents, num_documents - len(failed))
    if (len(indices), len(named)) != (num_expected, num_expected + len(failed)) or max(named) >= num_documents:
        raise UnexpectedReply(
            f"the reply to {num_documents} documents with top_n {request.top_n} ranks {indices} and fails "
            f"{sorted(failed)}"
        )
    if failed and errors == "raise":
        raise first_error(failed, num_texts=num_documents, noun="document")
    documents = tuple(
        RankedDocument(
            index=found.index,
            document=request.documents[found.index],
            score=found.score,
            logit=found.logit,
            num_tokens=found.num_tokens,
            num_tokens_original=found.num_tokens_original,
            rendered=found.rendered,
        )
        for found in reply.results
    )
    return Ranking(documents, reply.model, reply.activation, failed)
