"""All documents of a block in one prompt: each marker's projected state, and its cosine with the query's.

Source: rerank of jina-reranker-v3's published modeling.py (revision d7d7e73b). Unlike any other score, a document's
depends on those it is sent with.
"""

import numpy as np

from embedmux.server.admission import Admission, raise_if_whole
from embedmux.server.bridge.port import EnginePort
from embedmux.server.contract import Contract
from embedmux.server.errors import EmbedmuxError, EngineFailure
from embedmux.server.records import BASE_MODEL, Encoding, Output, OutputSpec, Terms
from embedmux.server.rows import take_apart
from embedmux.server.scorers.scored import Question, Scored, check_instruction
from embedmux.server.text.listwise import MAX_PASSAGES, Block, Listing, ListReader
from embedmux.server.text.tokenizer import Tokenizer


class Listwise:
    """Scores whole lists; documents of white space alone are not read and score 0."""

    def __init__(self, contract: Contract, tokenizer: Tokenizer, engine: EnginePort, admission: Admission) -> None:
        assert contract.late is not None, "a listwise reranker's contract describes the vectors of its markers"
        self._reader = ListReader(tokenizer, max_tokens=contract.max_tokens)
        self._engine = engine
        self._admission = admission
        self._dimensions = contract.late.dimensions
        # Markers alone have a vector: one for each passage of a block, and the query's.
        self._output = OutputSpec(
            contract.dimensions, Encoding.FLOAT32, (Output.TOKENS,), self._dimensions, MAX_PASSAGES + 1
        )

    async def score(self, question: Question) -> Scored:
        """See Scorer."""
        check_instruction(question.instruction, takes_one=True)
        places = [at for at, text in question.documents.items() if text.strip()]
        blank = question.documents.keys() - places
        scored = Scored(logits=dict.fromkeys(blank, 0.0), lengths=dict.fromkeys(blank, (0, 0)))
        if not places:
            return scored
        texts = [question.documents[at] for at in places]
        self._admission.check_total((len(text) for text in (question.query, *texts)), "documents")
        listing = await self._reader.encode(
            question.query, texts, instruction=question.instruction, truncate=question.truncate
        )
        errors: dict[int, EmbedmuxError] = {**listing.errors}
        cosines = await self._compute(listing, question.terms, errors)
        asked = listing.query
        scored.logits |= {places[at]: cosine for at, cosine in cosines.items()}
        scored.errors = {places[at]: error for at, error in errors.items()}
        scored.lengths |= {
            places[at]: (asked.num_tokens + passage.num_tokens, asked.original + passage.original)
            for at, passage in listing.passages.items()
        }
        if question.echoes:
            scored.rendered = {places[at]: block.frame.rendered for block in listing.blocks for at in block.documents}
            self._admission.check_total(map(len, scored.rendered.values()), "echoed documents")
        return scored

    async def _compute(self, listing: Listing, terms: Terms, errors: dict[int, EmbedmuxError]) -> dict[int, float]:
        """Cosines by document; those of a block that failed are added to ``errors``."""
        tokens = [block.tokens for block in listing.blocks]
        if not tokens:
            return {}
        rows, failed = await self._engine.embed(tokens, [BASE_MODEL] * len(tokens), self._output, terms)
        raise_if_whole(failed.values())
        queries: list[np.ndarray] = []
        documents: dict[int, np.ndarray] = {}
        weights: list[float] = []
        for number, (block, row) in enumerate(zip(listing.blocks, take_apart(rows, tokens, self._output), strict=True)):
            if number in failed:
                errors |= dict.fromkeys(block.documents, failed[number])
                continue
            own, query = self._vectors(row.token_vectors, block)
            documents |= dict(zip(block.documents, own, strict=True))
            queries.append(query)
            weights.append(float(((1 + _cosines(query, own)) / 2).max()))
        if not documents:
            return {}
        # Each block read the query beside other documents; blocks with a good match count for more.
        asked = np.average(queries, axis=0, weights=weights) if sum(weights) > 0 else np.mean(queries, axis=0)
        return dict(zip(documents, _cosines(asked, np.stack(list(documents.values()))).tolist(), strict=True))

    def _vectors(self, vectors: bytes, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Of the documents [n, D] and of the query [D], float64; the engine gives those of the markers, in order."""
        found = np.frombuffer(vectors, dtype="<f4").reshape(-1, self._dimensions).astype(np.float64)
        if len(found) != len(block.marks) + 1:
            raise EngineFailure(f"the engine gave {len(found)} vectors for {len(block.marks) + 1} markers")
        assert block.query_mark > block.marks[-1]
        return found[:-1], found[-1]


def _cosines(query: np.ndarray, documents: np.ndarray) -> np.ndarray:
    found: np.ndarray = documents @ query / (np.linalg.norm(documents, axis=1) * np.linalg.norm(query))
    return found
