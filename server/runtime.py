"""One model on one device, ready to compute: folder -> spec, weights, adapters, engine. Lives in the engine process."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from embedmux.kernels import ops
from embedmux.server.adapters.arena import AdapterArena
from embedmux.server.adapters.directory import list_adapter_folders, read_adapter, read_calibrations
from embedmux.server.adapters.registry import AdapterRegistry
from embedmux.server.backbones import load_backbone
from embedmux.server.backbones.spec import load_spec
from embedmux.server.batching.engine import Engine
from embedmux.server.batching.graphs import GraphedBackbone
from embedmux.server.batching.pack import pack
from embedmux.server.batching.scheduler import Scheduler
from embedmux.server.config import EngineConfig
from embedmux.server.errors import AdapterRejected, EngineFailure, ModelRejected
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.models import find_model
from embedmux.server.outputs import encode_all_kinds, encode_rows
from embedmux.server.records import Calibration, LowRankTables, Sequence

logger = logging.getLogger(__name__)

BUILDS = {"cpu": "build the extension (make install)", "cuda": "install Triton (pip install 'embedmux[cuda]')"}
BASE_FOLDER = "base"  # below the adapter root: what belongs to the bare model, such as its calibration


class Runtime:
    """Loads a model and its adapters, and runs the engine over them."""

    def __init__(self, config: EngineConfig) -> None:
        _check_kernels(config)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.folder = find_model(config.model)
        self.spec = load_spec(self.folder)
        self.device = torch.device(config.device)
        dtype = getattr(torch, config.dtype)
        arena = AdapterArena(
            self.spec.linears,
            max_slots=config.max_adapters,
            max_bytes=config.max_adapter_bytes,
            dtype=dtype,
            device=self.device,
        )
        low_rank = LowRankTables(arena.data, arena.tables)
        self.backbone = load_backbone(self.spec, self.folder, low_rank=low_rank, dtype=dtype, device=self.device)
        self._graphs = self._capture_graphs() if self.device.type == "cuda" else None
        base_calibrations: dict[int, Calibration] = {}
        if config.adapters is not None:
            path = config.adapters / BASE_FOLDER / "calibration.safetensors"
            base_calibrations = self._on_device(read_calibrations(path, BASE_FOLDER, root=config.adapters))
        self.registry = AdapterRegistry(arena, base_calibrations)
        if config.adapters is not None and config.loads_adapters:
            for folder in list_adapter_folders(config.adapters):
                self.load_adapter(str(folder.relative_to(config.adapters)), None)
        self.info = ModelInfo(
            name=config.model,
            digest=self.backbone.digest,
            architecture=self.spec.architecture,
            dimensions=self.spec.hidden_size,
            max_tokens=self.spec.max_tokens,
            pooling=self.spec.pooling.value,
            dtype=config.dtype,
            device=config.device,
            calibrations={size: found.id for size, found in base_calibrations.items()},
            backends=ops.backends(config.device),
            isa=ops.cpu_isa(),
        )
        self.engine = Engine(
            self._compute,
            self.registry,
            Scheduler(
                max_batch_tokens=config.max_batch_tokens,
                max_batch_texts=config.max_batch_texts,
                max_queue_tokens=config.max_queue_tokens,
            ),
        )

    def load_adapter(self, path: str, adapter_id: str | None) -> AdapterInfo:
        """Reads, checks and places an adapter folder below the adapter root; raises AdapterRejected."""
        root = self.config.adapters
        if root is None:
            raise AdapterRejected(f"adapter {path!r}: the server has no adapter root; start it with --adapters DIR")
        adapter = read_adapter(
            root / Path(path),
            self.spec.targets,
            root=root,
            adapter_id=adapter_id,
            max_rank=self.config.max_adapter_rank,
        )
        return self.registry.add(replace(adapter, calibrations=self._on_device(adapter.calibrations)))

    def _on_device(self, calibrations: dict[int, Calibration]) -> dict[int, Calibration]:
        return {
            size: replace(calibration, ranges=calibration.ranges.to(self.device))
            for size, calibration in calibrations.items()
        }

    @torch.inference_mode()
    def _capture_graphs(self) -> GraphedBackbone:
        config = self.config
        graphs = GraphedBackbone(
            self.backbone,
            max_tokens=config.max_batch_tokens,
            max_texts=config.max_batch_texts,
            max_segments=config.max_adapters + 1,
            device=self.device,
        )
        # What follows the graph is compiled now too, not while the first request waits.
        states = torch.zeros(1, self.spec.hidden_size, dtype=self.backbone.dtype, device=self.device)
        encode_all_kinds(states, torch.tensor([0, 1], dtype=torch.int32, device=self.device), self.spec.pooling)
        return graphs

    @torch.inference_mode()
    def _compute(self, sequences: list[Sequence]) -> list[bytes | EngineFailure]:
        """Sequences in batch order -> one row of bytes, or its own error, each; runs on the device thread."""
        specs = []
        for sequence in sequences:
            output, handle = sequence.job.output, int(sequence.job.adapters[sequence.index])
            calibrated = output.encoding.is_calibrated
            specs.append((output, self.registry.calibration(handle, output.dimensions) if calibrated else None))
        layout = pack(sequences)
        if self._graphs is not None:
            states, batch = self._graphs(layout)
        else:
            batch = layout.to(self.device)
            states = self.backbone(batch)
        rows = encode_rows(states, batch.offsets[: len(sequences) + 1], specs, self.spec.pooling)
        return [row if isinstance(row, EngineFailure) else row.tobytes() for row in rows]


def _check_kernels(config: EngineConfig) -> None:
    """Refuses to serve on a reference kernel, or on a device that is not there (law 3: nothing silent)."""
    if config.device == "cuda" and not torch.cuda.is_available():
        build = f"this torch ({torch.__version__}) is built for CUDA {torch.version.cuda}"
        reason = build if torch.version.cuda else f"this torch ({torch.__version__}) is built without CUDA"
        raise ModelRejected(f"device is 'cuda', but torch sees no CUDA device; {reason}; use --device cpu")
    slow = [name for name, backend in ops.backends(config.device).items() if backend == "reference"]
    if slow and not config.allow_reference:
        raise ModelRejected(
            f"no compiled kernel on {config.device} for {', '.join(slow)}; "
            f"{BUILDS[config.device]}, or accept slow reference kernels with --allow-reference"
        )
