"""Documents scored by their token vectors: for each token of the query the most similar one of the document."""

import numpy as np

from embedmux.server.admission import Admission, raise_if_whole
from embedmux.server.bridge.port import EnginePort
from embedmux.server.contract import Contract
from embedmux.server.errors import EmbedmuxError, InvalidRequest
from embedmux.server.records import BASE_MODEL, Encoding, Output, OutputSpec, Role, Terms, Tokens
from embedmux.server.rows import take_apart
from embedmux.server.scorers.scored import Question, Scored, check_instruction
from embedmux.server.text.frames import Frame, fill
from embedmux.server.text.late import LateReader
from embedmux.server.text.tokenizer import Tokenizer


class LateInteraction:
    """MaxSim of Khattab and Zaharia 2020, in float32: a sum over the query's tokens, or their mean where it is so said.

    Query and documents are read apart, so each vector is what the Embedder would give.
    """

    def __init__(self, contract: Contract, tokenizer: Tokenizer, engine: EnginePort, admission: Admission) -> None:
        assert contract.late is not None
        self._contract = contract
        self._late = contract.late
        self._reader = LateReader(contract.late)
        self._tokenizer = tokenizer
        self._engine = engine
        self._admission = admission
        self._output = OutputSpec(contract.dimensions, Encoding.FLOAT32, (Output.TOKENS,), contract.late.dimensions)

    async def score(self, question: Question) -> Scored:
        """See Scorer."""
        check_instruction(question.instruction, takes_one=self._contract.template is not None)
        frames = self._frames(question)
        self._admission.check_total((frame.num_characters for frame in frames), "documents")
        places = list(question.documents)
        scored = Scored()
        if question.echoes:
            scored.rendered = {at: frame.rendered for at, frame in zip(places, frames[1:], strict=True)}
        asked, *found = await self._tokenizer.encode(frames, question.truncate)
        if not isinstance(asked, Tokens):
            raise InvalidRequest(f"the query cannot be read: {asked}")
        query = self._reader.expand(asked, Role.QUERY)
        tokens: dict[int, Tokens] = {}
        for at, result in zip(places, found, strict=True):
            if isinstance(result, Tokens):
                tokens[at] = result
                scored.lengths[at] = (len(query.ids) + len(result.ids), query.original + result.original)
            else:
                scored.errors[at] = result
        if tokens:
            await self._compute(query, tokens, question.terms, scored)
        return scored

    def _frames(self, question: Question) -> list[Frame]:
        """The query's frame, then those of the documents."""
        contract = self._contract
        prompt, document_prompt = contract.prompts.pair
        if question.instruction is not None and contract.template is not None:
            prompt = fill(contract.template, instruction=question.instruction)
        suffix = contract.suffix
        query = self._reader.frame(prompt, question.query, suffix, Role.QUERY)
        texts = question.documents.values()
        return [query, *(self._reader.frame(document_prompt, text, suffix, Role.DOCUMENT) for text in texts)]

    async def _compute(self, query: Tokens, tokens: dict[int, Tokens], terms: Terms, scored: Scored) -> None:
        texts = [query, *tokens.values()]
        rows, failed = await self._engine.embed(texts, [BASE_MODEL] * len(texts), self._output, terms)
        raise_if_whole(failed.values())
        if 0 in failed:
            raise failed[0]
        vectors = [row.token_vectors for row in take_apart(rows, texts, self._output)]
        asked = self._matrix(vectors[0], query, Role.QUERY)
        for position, (at, document) in enumerate(tokens.items(), start=1):
            found: float | EmbedmuxError
            found = failed.get(position) or self._similarity(asked, vectors[position], document)
            if isinstance(found, EmbedmuxError):
                scored.errors[at] = found
            else:
                scored.logits[at] = found

    def _similarity(self, query: np.ndarray, vectors: bytes, document: Tokens) -> float | InvalidRequest:
        """Query [Q, D] against one document alone, so that its score does not depend on the others."""
        found = self._matrix(vectors, document, Role.DOCUMENT)
        if not len(found):
            return InvalidRequest("the document has no token that counts; send more than punctuation")
        best = (query @ found.T).max(axis=1)
        return float(best.mean(dtype=np.float64) if self._late.is_mean else best.sum(dtype=np.float64))

    def _matrix(self, vectors: bytes, tokens: Tokens, role: Role) -> np.ndarray:
        """The vectors that count [n, D] float32."""
        width = Encoding.FLOAT32.row_bytes(self._late.dimensions)
        kept = self._reader.select(vectors, width, tokens, role)
        return np.frombuffer(kept, dtype="<f4").reshape(-1, self._late.dimensions)
