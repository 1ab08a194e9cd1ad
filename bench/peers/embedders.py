"""Other ways to embed texts, as their users would: built from a checkpoint folder and texts, called for the vectors.

A call returns ([n, dimensions] float32 unit vectors,) in the order of the texts, tokenisation included.
"""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnxruntime
import openvino
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
torch.set_num_threads(len(os.sched_getaffinity(0)))


def pooled(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Means over each text's tokens, normalised."""
    weights = mask[..., None].astype(np.float32)
    vectors = (states * weights).sum(1) / weights.sum(1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Batches:
    """Texts in batches of like lengths, padded; ``run`` is given the tokenizer's arrays and the texts' places."""

    def __init__(self, folder: str, texts: list[str], batch_size: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.texts, self.batch_size = texts, batch_size
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        self.places = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def __call__(self) -> tuple[np.ndarray, ...]:
        vectors = [None] * len(self.texts)
        for places in self.places:
            encoded = self.tokenizer(
                [self.texts[i] for i in places], padding=True, truncation=True, return_tensors="np"
            )
            states = self.run(encoded, places)
            for place, vector in zip(places, pooled(states, encoded["attention_mask"]), strict=True):
                vectors[place] = vector
        return (np.stack(vectors),)


def exported(folder: str, path: Path) -> Path:
    """The checkpoint as ONNX with its own attention, made once."""
    if not path.exists():
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        class States(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, ids, mask, types):
                return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

        sample = torch.ones(2, 16, dtype=torch.long)
        axes = {name: {0: "batch", 1: "tokens"} for name in (*INPUTS, "states")}
        torch.onnx.export(
            States(), (sample, sample, sample * 0), str(path), input_names=list(INPUTS), output_names=["states"],
            dynamic_axes=axes, dynamo=False, opset_version=17,
        )  # fmt: skip
    return path


class OpenVino(Batches):
    """OpenVINO on the exported model; precision "f32" or "bf16"."""

    def __init__(self, folder: str, texts: list[str], work: str, precision: str, batch_size: int) -> None:
        super().__init__(folder, texts, batch_size)
        hints = {
            "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }  # fmt: skip
        model = openvino.Core().compile_model(str(exported(folder, Path(work) / "model.onnx")), "CPU", hints)
        self.request = model.create_infer_request()

    def run(self, encoded, places):
        return self.request.infer({name: encoded[name].astype(np.int64) for name in INPUTS})[0]


class OnnxRuntime(Batches):
    """onnxruntime on the exported model, its attention, GELU and norms fused by onnxruntime's own optimiser."""

    def __init__(self, folder: str, texts: list[str], work: str, batch_size: int, heads: int, hidden: int) -> None:
        from onnxruntime.transformers import optimizer  # noqa: PLC0415 - slow to import

        super().__init__(folder, texts, batch_size)
        path = Path(work) / "optimised.onnx"
        if not path.exists():
            plain = exported(folder, Path(work) / "model.onnx")
            found = optimizer.optimize_model(str(plain), model_type="bert", num_heads=heads, hidden_size=hidden)
            found.save_model_to_file(str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, encoded, places):
        return self.session.run(None, {name: encoded[name].astype(np.int64) for name in INPUTS})[0]


class SentenceTransformers:
    """sentence-transformers' encode, in float32."""

    def __init__(self, folder: str, texts: list[str], batch_size: int) -> None:
        self.model = SentenceTransformer(folder, device="cpu")
        self.model.max_seq_length = 512  # the same work for all
        self.texts, self.batch_size = texts, batch_size

    def __call__(self) -> tuple[np.ndarray, ...]:
        return (self.model.encode(self.texts, batch_size=self.batch_size, normalize_embeddings=True),)


class Peft(Batches):
    """transformers + PEFT with an adapter a row: ``adapters`` are folders by name, taken by the texts in turn."""

    def __init__(self, folder: str, texts: list[str], batch_size: int, adapters: dict[str, str]) -> None:
        super().__init__(folder, texts, batch_size)
        names = list(adapters)
        self.names = [names[index % len(names)] for index in range(len(texts))]
        self.model = with_adapters(AutoModel.from_pretrained(folder), adapters)

    def run(self, encoded, places):
        names = [self.names[i] for i in places]
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(encoded[name]) for name in INPUTS}
            return self.model(**inputs, adapter_names=names).last_hidden_state.numpy()


class PeftTokens:
    """The same in bfloat16 over token ids, of texts of one length each batch; the last token's state, normalised."""

    def __init__(self, folder: str, ids: list[list[int]], adapters: dict[str, str]) -> None:
        names = list(adapters)
        self.names = [names[index % len(names)] for index in range(len(ids))]
        self.ids = torch.tensor(ids)
        self.model = with_adapters(AutoModel.from_pretrained(folder, dtype=torch.bfloat16), adapters).to(torch.bfloat16)

    def __call__(self) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            states = self.model(input_ids=self.ids, adapter_names=self.names, use_cache=False).last_hidden_state
        last = states[:, -1].float().numpy()
        return (last / np.linalg.norm(last, axis=1, keepdims=True),)


def with_adapters(model, adapters: dict[str, str]):
    """The model with all adapters loaded, none merged."""
    names = list(adapters)
    found = PeftModel.from_pretrained(model, adapters[names[0]], adapter_name=names[0])
    for name in names[1:]:
        found.load_adapter(adapters[name], adapter_name=name)
    return found.eval()
