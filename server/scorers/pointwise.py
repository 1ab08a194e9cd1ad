"""Each document in one sequence with the query: cross-encoders and language models that answer yes or no."""

import numpy as np

from embedmux.server.admission import Admission, raise_if_whole
from embedmux.server.bridge.port import EnginePort
from embedmux.server.contract import Contract, ScoreContract
from embedmux.server.errors import InvalidRequest
from embedmux.server.records import BASE_MODEL, Encoding, Output, OutputSpec, Terms, Tokens
from embedmux.server.scorers.scored import Question, Scored, check_instruction
from embedmux.server.text.frames import Frame, fill
from embedmux.server.text.pairs import PairReader
from embedmux.server.text.tokenizer import Tokenizer

MAX_QUERY_SHARE = 0.75  # of the model's tokens that a query may take in a pair


class Pointwise:
    """Scores by a logit of one sequence for each document; what stands before the document is shared by all."""

    def __init__(self, contract: Contract, tokenizer: Tokenizer, engine: EnginePort, admission: Admission) -> None:
        assert contract.score is not None
        self._score: ScoreContract = contract.score
        self._tokenizer = tokenizer
        self._engine = engine
        self._admission = admission
        self._output = OutputSpec(contract.dimensions, Encoding.FLOAT32, (Output.SCORE,))
        self._pairs = (
            PairReader(tokenizer, max_tokens=contract.max_tokens, max_query_share=MAX_QUERY_SHARE)
            if self._score.before is None
            else None
        )

    async def score(self, question: Question) -> Scored:
        """See Scorer."""
        check_instruction(question.instruction, takes_one="{instruction}" in (self._score.before or ""))
        scored = Scored()
        found = await (self._read_pairs if self._pairs else self._read_template)(question, scored)
        tokens: dict[int, Tokens] = {}
        for at, result in zip(question.documents, found, strict=True):
            if isinstance(result, Tokens):
                tokens[at] = result
                scored.lengths[at] = (len(result.ids), result.original)
            else:
                scored.errors[at] = result
        if tokens:
            await self._compute(tokens, question.terms, scored)
        return scored

    async def _read_pairs(self, question: Question, scored: Scored) -> list[Tokens | InvalidRequest]:
        assert self._pairs is not None
        documents = question.documents
        self._admission.check_total((len(question.query) + len(text) for text in documents.values()), "documents")
        if question.echoes:
            scored.rendered = {at: self._pairs.render(question.query, text) for at, text in documents.items()}
        return await self._pairs.encode(question.query, list(documents.values()), question.truncate)

    async def _read_template(self, question: Question, scored: Scored) -> list[Tokens | InvalidRequest]:
        rule = self._score
        assert rule.before is not None
        instruction = rule.instruction if question.instruction is None else question.instruction
        before = fill(rule.before, instruction=instruction, query=question.query)
        frames = [Frame(before, text, rule.after or "") for text in question.documents.values()]
        self._admission.check_total((frame.num_characters for frame in frames), "documents")
        # Before any document is read with it: what stands before them all is the query's fault, not each document's.
        asked = await self._tokenizer.run(len(before), lambda _: self._tokenizer.num_prefix_tokens(before))
        if asked >= self._tokenizer.max_tokens:
            raise InvalidRequest(
                f"the query has {asked} tokens with its instruction and frame, the model reads "
                f"{self._tokenizer.max_tokens} with a document; shorten it"
            )
        if question.echoes:
            scored.rendered = {at: frame.rendered for at, frame in zip(question.documents, frames, strict=True)}
        return await self._tokenizer.encode(frames, question.truncate)

    async def _compute(self, tokens: dict[int, Tokens], terms: Terms, scored: Scored) -> None:
        places = list(tokens)
        rows, failed = await self._engine.embed(list(tokens.values()), [BASE_MODEL] * len(tokens), self._output, terms)
        raise_if_whole(failed.values())
        scored.errors |= {places[position]: error for position, error in failed.items()}
        logits = np.frombuffer(rows, dtype="<f4").tolist()
        scored.logits = {at: logit for at, logit in zip(places, logits, strict=True) if at not in scored.errors}
