"""One model in the engine: its folder's contract, weights, heads and adapters, and how a batch of its texts runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from embedmux.kernels import ops
from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.adapters.directory import list_adapter_folders, read_adapter, read_calibrations
from embedmux.server.adapters.merged import MergedWeights
from embedmux.server.adapters.registry import AdapterRegistry
from embedmux.server.adapters.stacked import read_stacked
from embedmux.server.backbones import find_family
from embedmux.server.backbones.shape import targets_of
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.batching.graphs import GraphedBackbone
from embedmux.server.batching.pack import Packing, Piece, pack, piece_of, to_device
from embedmux.server.batching.prefixes import PrefixCache, make_pool
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.checkpoint.read import read
from embedmux.server.config import EngineConfig, ModelConfig
from embedmux.server.errors import AdapterRejected, ModelRejected
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.heads.build import Heads, build_heads
from embedmux.server.models import find_model
from embedmux.server.outputs import Row, encode_all_kinds, encode_rows
from embedmux.server.packed import LowRankTables
from embedmux.server.records import BASE_MODEL, Calibration, Placement, Sequence

logger = logging.getLogger(__name__)

BASE_FOLDER = "base"  # below the adapter root: what belongs to the bare model, such as its calibration


class LoadedModel:
    """Loads a model and its adapters; ``compute`` is called by the device thread alone."""

    def __init__(self, model: ModelConfig, config: EngineConfig) -> None:
        self.name = model.name
        self.folder = find_model(model.source)
        reading = read(self.folder)
        self.contract = contract = reading.contract
        self.device = torch.device(config.device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._max_rank = config.max_adapter_rank
        self.adapter_root = model.adapters or contract.adapters
        family = find_family(contract.architecture)
        shape = family.read_shape(ModelFolder(self.folder).config())
        self.targets = targets_of(shape.linears)
        arena = AdapterArena(
            shape.linears,
            max_slots=config.max_adapters,
            max_bytes=config.max_adapter_bytes,
            dtype=self.dtype,
            device=self.device,
        )
        checkpoint = Checkpoint(self.folder, prefixes=family.PREFIXES, device=self.device)
        low_rank = LowRankTables(arena.data, arena.tables, is_int8=config.quantize == "int8")
        self.backbone = family.Backbone(shape, checkpoint, low_rank=low_rank, dtype=self.dtype)
        self.heads: Heads = build_heads(contract, checkpoint, shape.hidden_size, self.backbone.words)
        own = read_stacked(checkpoint, ModelFolder(self.folder), shape.linears)
        self._own = {adapter.id: adapter for adapter in own}
        checkpoint.finish(family.is_unused)
        self._packing, self._prefixes = Packing(contract.pooled, unread_token=contract.unread_token), None
        if shape.is_causal and contract.shares_prefixes and config.max_prefix_tokens:
            pool = make_pool(
                num_layers=shape.num_layers, num_rows=config.max_prefix_tokens, num_kv_heads=shape.num_kv_heads,
                head_size=shape.head_size, dtype=self.dtype, device=self.device,
            )  # fmt: skip
            self._packing = replace(self._packing, pool=pool)
            self._prefixes = PrefixCache(config.max_prefix_tokens)
        self._graphs = self._capture(config) if self.device.type == "cuda" else None
        calibrations = self._base_calibrations()
        self._placement = Placement(config.placement)
        self._merged: MergedWeights | None = None
        if self.device.type == "cpu":
            self._merged = MergedWeights(arena, low_rank.linears, checkpoint.reopened)
        self.registry = AdapterRegistry(arena, calibrations, self._merged)
        if config.loads_adapters:
            self._load_all()
        self.info = self._describe(model.name, checkpoint.digest(), calibrations, config, notes=reading.notes)

    def load_adapter(self, path: str, adapter_id: str | None, placement: str | None = None) -> AdapterInfo:
        """Reads, checks and places an adapter folder below the adapter root; raises AdapterRejected.

        The adapters that the checkpoint itself holds are loaded again by their ids. ``placement`` None is that of the
        configuration.
        """
        placed = self._placement if placement is None else Placement(placement)
        if path in self._own and adapter_id in (None, path):
            return self.registry.add(self._own[path], placed)
        root = self.adapter_root
        if root is None:
            raise AdapterRejected(
                f"adapter {path!r}: model {self.name!r} has no adapter root; start the server with "
                f"--adapters {self.name}=DIR, or name the model that has one"
            )
        adapter = read_adapter(
            root / Path(path), self.targets, root=root, adapter_id=adapter_id, max_rank=self._max_rank
        )
        return self.registry.add(
            replace(adapter, path=path, calibrations=self._on_device(adapter.calibrations)), placed
        )

    @torch.inference_mode()
    def compute(self, sequences: list[Sequence]) -> list[Row]:
        """Sequences in batch order -> one row of bytes, or its own error, each."""
        specs = [(sequence.job.output, self._calibration(sequence)) for sequence in sequences]
        wholes = [piece_of(sequence) for sequence in sequences]
        if self._prefixes is None:
            pieces, places = wholes, list(range(len(wholes)))
        else:
            pieces, places = self._prefixes.split(sequences, wholes)
        try:
            layout = pack(pieces, self._packing)
            if self._graphs is not None:
                states, _ = self._graphs(layout)
            else:
                merged = self._merged.slots if self._merged is not None else ()
                states = self.backbone(to_device(layout, self._packing, self.device, merged=merged))
            token_ids = [piece.token_ids for piece in wholes]
            return encode_rows(states, places, token_ids, specs, self.contract.pooling, self.heads)
        except Exception:
            if self._prefixes is not None:
                self._prefixes.clear()
            raise

    def _calibration(self, sequence: Sequence) -> Calibration | None:
        """The ranges that a text's codes are made with; None for encodings without."""
        output = sequence.job.output
        if not output.encoding.is_calibrated:
            return None
        return self.registry.calibration(int(sequence.job.adapters[sequence.index]), output.dimensions)

    def _load_all(self) -> None:
        """The checkpoint's own adapters and every one below the root; those it promises must be among them."""
        for adapter_id in self._own:
            self.load_adapter(adapter_id, None)
        if self.adapter_root is not None:
            for folder in list_adapter_folders(self.adapter_root):
                self.load_adapter(str(folder.relative_to(self.adapter_root)), None)
        missing = set(self.contract.tasks) - {info.task or info.id for info in self.registry.list()}
        if missing:
            raise ModelRejected(
                f"model {self.folder.name!r} names the tasks {', '.join(self.contract.tasks)}, but has no adapter for "
                f"{', '.join(sorted(missing))}; copy the folder with its adapters"
            )

    def _base_calibrations(self) -> dict[int, Calibration]:
        if self.adapter_root is None:
            return {}
        path = self.adapter_root / BASE_FOLDER / "calibration.safetensors"
        return self._on_device(read_calibrations(path, BASE_FOLDER, root=self.adapter_root))

    def _on_device(self, calibrations: dict[int, Calibration]) -> dict[int, Calibration]:
        return {
            size: replace(calibration, ranges=calibration.ranges.to(self.device))
            for size, calibration in calibrations.items()
        }

    @torch.inference_mode()
    def _capture(self, config: EngineConfig) -> GraphedBackbone:
        graphs = GraphedBackbone(
            self.backbone,
            max_tokens=config.max_batch_tokens,
            max_texts=config.max_batch_texts,
            max_segments=config.max_adapters + 1,
            device=self.device,
            packing=self._packing,
        )
        # What follows the graph is compiled now too, not while the first request waits.
        layout = pack([Piece(np.zeros(1, dtype=np.int32), BASE_MODEL)], self._packing)
        states = self.backbone(to_device(layout, self._packing, self.device))
        encode_all_kinds(states, self.contract.pooling)
        return graphs

    def _describe(
        self,
        name: str,
        digest: str,
        calibrations: dict[int, Calibration],
        config: EngineConfig,
        *,
        notes: tuple[str, ...],
    ) -> ModelInfo:
        contract, score = self.contract, self.contract.score
        if config.quantize == "int8":
            notes = (*notes, "its linears multiply int8 codes (--quantize int8), which moves vectors a little")
        return ModelInfo(
            name=name,
            digest=f"{digest}:{self.heads.digest}" if self.heads.digest else digest,
            architecture=contract.architecture,
            dimensions=contract.dimensions,
            max_tokens=contract.max_tokens,
            pooling=contract.pooling.value,
            dtype=config.dtype,
            device=config.device,
            calibrations={size: found.id for size, found in calibrations.items()},
            backends=ops.backends(config.device),
            isa=ops.cpu_isa(),
            family=contract.family,
            kind="reranker" if score is not None else "embedder",
            sizes=contract.sizes,
            any_size_from=contract.any_size_from,
            outputs=tuple(output.value for output in contract.outputs),
            template=contract.template or "",
            default_instruction=score.instruction if score is not None else contract.default_instruction,
            activation=score.activation.value if score is not None else "",
            notes=notes,
        )
