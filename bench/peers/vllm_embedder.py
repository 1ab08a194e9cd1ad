"""vLLM's pooling runner on the CPU, with a LoRA request for each text."""

import os

os.environ.update({"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"})

import numpy as np
from vllm import LLM
from vllm.lora.request import LoRARequest


class VllmTokens:
    """Token ids of texts, the adapters in turn; the vectors as vLLM gives them."""

    def __init__(self, folder: str, ids: list[list[int]], adapters: dict[str, str], rank: int) -> None:
        self.model = LLM(
            folder, runner="pooling", dtype="bfloat16", enable_lora=True, enforce_eager=True, max_lora_rank=rank,
            max_loras=len(adapters), max_model_len=512,
        )  # fmt: skip
        self.prompts = [{"prompt_token_ids": text} for text in ids]
        requests = [LoRARequest(name, index + 1, path) for index, (name, path) in enumerate(adapters.items())]
        self.requests = [requests[index % len(requests)] for index in range(len(ids))]

    def __call__(self) -> tuple[np.ndarray, ...]:
        found = self.model.embed(self.prompts, lora_request=self.requests, use_tqdm=False)
        vectors = np.array([each.outputs.embedding for each in found], dtype=np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True),)
