"""A checkpoint folder served in this process, through the same front and engine as over gRPC, with plain calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType

import numpy as np

from embedmux.server.bridge.local import LocalEngine
from embedmux.server.config import EngineConfig, Limits, ModelConfig, ServeConfig
from embedmux.server.desk import conduct, open_models
from embedmux.server.records import Encoding, Output, OutputSpec, Role, Tokens, Truncate
from embedmux.server.requests import EmbedJob, EmbedResult, Instruction, RerankJob, RerankResult
from model_families import family


class Served:
    """One model, or several, by their folders. Use it as a context manager."""

    def __init__(
        self, *folders: Path, dtype: str = "float32", max_prefix_tokens: int = 4096, max_batch: int = 8192
    ) -> None:
        models = tuple(ModelConfig(str(folder), name=folder.name) for folder in folders)
        config = EngineConfig(
            models=models, dtype=dtype, max_prefix_tokens=max_prefix_tokens, max_batch_tokens=max_batch,
            max_adapters=8, max_adapter_bytes=1 << 28,
        )  # fmt: skip
        self.engine = LocalEngine(config)
        limits = Limits()
        self.served = open_models(ServeConfig(engine=config, limits=limits, tokenizer_threads=1), self.engine)
        self.models = conduct(self.served, limits)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._runner.close()
        for model in self.served:
            model.tokenizer.close()
        self.engine.close()

    def job(
        self, texts: list[str], *, task: str | None = None, role: family.Role | None = None,
        instruction: str | None = None, **fields: object,
    ) -> EmbedResult:  # fmt: skip
        """The answer to an Embed request whose texts share an instruction."""
        what = Instruction(task=task, role=Role(role) if role else None, instruction=instruction)
        job = EmbedJob(tuple(texts), (what,) * len(texts), **fields)  # type: ignore[arg-type]
        return self._runner.run(self.models.embed(job))

    def embed(
        self, texts: list[str], *, task: str | None = None, role: family.Role | None = None,
        instruction: str | None = None, **fields: object,
    ) -> family.Vectors:  # fmt: skip
        """[n, d] float32; raises the first error of a text."""
        result = self.job(texts, task=task, role=role, instruction=instruction, **fields)
        for error in result.errors.values():
            raise error
        return np.frombuffer(result.vectors, "<f4").reshape(len(texts), result.dimensions)

    def token_ids(
        self, texts: list[str], *, task: str | None = None, role: family.Role | None = None
    ) -> list[list[int]]:
        """What the model reads of each text."""
        what = Instruction(task=task, role=Role(role) if role else None)
        found = self._runner.run(self.models.tokenize(EmbedJob(tuple(texts), (what,) * len(texts))))
        for each in found:
            if isinstance(each, Exception):
                raise each
        return [each.ids for each in found]  # type: ignore[union-attr]

    def sparse(self, texts: list[str]) -> list[dict[int, float]]:
        """Token id -> weight of each text."""
        result = self.job(texts, outputs=(Output.DENSE, Output.SPARSE))
        return [
            dict(zip(np.frombuffer(ids, "<u4").tolist(), np.frombuffer(weights, "<f4").tolist(), strict=True))
            for ids, weights in result.sparse
        ]

    def tokens(self, texts: list[str], role: family.Role) -> list[family.Vectors]:
        """Token vectors of each text, [tokens, d] float32."""
        result = self.job(texts, role=role, outputs=(Output.TOKENS,))
        for error in result.errors.values():
            raise error
        return [np.frombuffer(rows, "<f4").reshape(-1, result.token_dimensions) for rows in result.token_vectors]

    def rerank(self, query: str, documents: list[str], *, truncate: Truncate = Truncate.NONE) -> RerankResult:
        """The answer to a Rerank request."""
        return self._runner.run(self.models.rerank(RerankJob(query, tuple(documents), truncate=truncate)))

    def score(self, query: str, documents: list[str]) -> family.Vectors:
        """[n] raw logits."""
        result = self.rerank(query, documents)
        for error in result.errors.values():
            raise error
        return np.array(result.logits)

    def rows(self, tokens: list[Tokens], *, adapters: list[int], output: OutputSpec | None = None) -> list[bytes]:
        """What the engine makes of token ids, a row of bytes each, in one batch."""
        output = output or OutputSpec(self.engine.models[0].dimensions, Encoding.FLOAT32)
        data, errors = self._runner.run(self.engine.embed(0, tokens, adapters, output))
        assert not errors, errors
        starts = output.row_starts([len(text.ids) for text in tokens])
        return [data[starts[i] : starts[i + 1]] for i in range(len(tokens))]
