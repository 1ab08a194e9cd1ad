"""The Reranker service."""

from dataclasses import replace
from typing import Any, ClassVar

from embedmux.proto import rerank_pb2
from embedmux.server.records import Output
from embedmux.server.rpc import ports
from embedmux.server.rpc.calls import Call
from embedmux.server.rpc.convert_rerank import Scorer, rerank_job, rerank_reply

RERANKER, TOKENS, IDENTITY = "reranker", Output.TOKENS.value, "identity"


class Reranker:
    """Rerank. A request that names no model goes to the first reranker that ``facts`` lists.

    Embedders with token vectors rerank too, by MaxSim; they stand behind the rerankers proper.
    """

    SERVICE: ClassVar[Any] = rerank_pb2.DESCRIPTOR.services_by_name["Reranker"]
    NEEDS_ENGINE: ClassVar[bool] = True

    def __init__(self, reranker: ports.Reranker, facts: ports.Facts) -> None:
        self._reranker = reranker
        self._facts = facts
        self._scorers: dict[str, Scorer] = {}  # which models there are is settled once the server serves

    async def Rerank(self, request: rerank_pb2.RerankRequest, call: Call) -> rerank_pb2.RerankResponse:
        """Every document that could be scored, best first."""
        call.notes.num_texts += len(request.documents)
        job = rerank_job(request, terms=call.terms)
        if (named := self._scorer(job.model)) is not None:
            job = replace(job, model=named.model)  # the reply names the model, so the choice is made here
        result = await self._reranker.rerank(job)
        scorer = named or self._scorer(job.model)
        assert scorer is not None, f"model {job.model!r} reranks, but Server.Info does not say so"
        return rerank_reply(result, top_n=request.top_n, scorer=scorer, request_id=request.request_id)

    def _scorer(self, name: str | None) -> Scorer | None:
        """The reranker of that name, or the first; None if there is none, or none yet."""
        if not self._scorers:
            models = [served.info for served in self._facts.describe().models]
            rerankers = [model for model in models if model.kind == RERANKER]
            late = [model for model in models if model.kind != RERANKER and TOKENS in model.outputs]
            found = [Scorer(model.name, model.activation) for model in rerankers]
            found += [Scorer(model.name, IDENTITY) for model in late]
            self._scorers = {scorer.model: scorer for scorer in found}
        return next(iter(self._scorers.values()), None) if name is None else self._scorers.get(name)
