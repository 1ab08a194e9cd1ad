"""One rerank request from start to end: a query and documents in, logits and scores out."""

import math

from embedmux.server.admission import Admission
from embedmux.server.bridge.port import EnginePort
from embedmux.server.config import Limits
from embedmux.server.contract import Activation, Contract, ScoreKind
from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound, Overloaded
from embedmux.server.metrics.ports import TextObserver, UnobservedTexts
from embedmux.server.requests import RerankJob, RerankResult
from embedmux.server.scorers.late import LateInteraction
from embedmux.server.scorers.listwise import Listwise
from embedmux.server.scorers.pointwise import Pointwise
from embedmux.server.scorers.scored import Question, Scored
from embedmux.server.text.tokenizer import Tokenizer


class Reranker:
    """Conducts rerank requests to one model: one that scores pairs or lists, or an embedder with token vectors."""

    def __init__(
        self,
        contract: Contract,
        tokenizer: Tokenizer,
        engine: EnginePort,
        limits: Limits,
        observer: TextObserver | None = None,
    ) -> None:
        self._rule = contract.score
        self._engine = engine
        self._admission = Admission(limits)
        self._observer = observer or UnobservedTexts()
        self._scorer = _scorer(contract)(contract, tokenizer, engine, self._admission)

    async def rerank(self, job: RerankJob) -> RerankResult:
        """Logit and score of every document; raises only what concerns the whole request, the query included."""
        try:
            result = await self._rerank(job)
        except Overloaded as refusal:
            self._observer.refused(job.terms, refusal.reason)
            raise
        self._observer.answered(job.terms, result)
        return result

    async def _rerank(self, job: RerankJob) -> RerankResult:
        if job.model and job.model != self._engine.model.name:
            raise NotFound(f"model {job.model!r} is not served here; this server has {self._engine.model.name!r}")
        self._admission.check_count(len(job.documents), "documents")
        self._engine.expect(sum(map(len, job.documents)), job.terms)
        query = self._prepared(job.query, "query", job.instruction or "")
        documents: dict[int, str] = {}
        errors: dict[int, EmbedmuxError] = {}
        for index, document in enumerate(job.documents):
            try:
                documents[index] = self._prepared(document, "document")
            except InvalidRequest as error:
                errors[index] = error
        scored = Scored()
        if documents:
            scored = await self._scorer.score(
                Question(query, documents, job.instruction, job.truncate, job.terms, job.echoes)
            )
        places = range(len(job.documents))
        logits = [scored.logits.get(at, 0.0) for at in places]
        return RerankResult(
            logits=logits,
            scores=[self._activated(logit) if at in scored.logits else 0.0 for at, logit in enumerate(logits)],
            num_tokens=[scored.lengths.get(at, (0, 0))[0] for at in places],
            num_tokens_original=[scored.lengths.get(at, (0, 0))[1] for at in places],
            errors=errors | scored.errors,
            rendered=[scored.rendered.get(at, "") for at in places] if job.echoes else [],
        )

    def _prepared(self, text: str, name: str, prompt: str = "") -> str:
        """The text as the model's own code takes it; raises InvalidRequest for an empty or too large one."""
        found = text.strip() if self._rule is not None and self._rule.strips else text
        self._admission.check_text(found, prompt, name=name)
        return found

    def _activated(self, logit: float) -> float:
        if self._rule is None:
            return logit
        value = logit / self._rule.temperature
        return _sigmoid(value) if self._rule.activation is Activation.SIGMOID else value


def _scorer(contract: Contract) -> type[Pointwise] | type[Listwise] | type[LateInteraction]:
    if contract.score is None:
        assert contract.late is not None, f"family {contract.family!r} neither scores nor has token vectors"
        return LateInteraction
    return Listwise if contract.score.kind is ScoreKind.LISTWISE else Pointwise


def _sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    power = math.exp(value)
    return power / (1.0 + power)
