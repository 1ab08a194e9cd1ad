"""The activation of a gated feed-forward, by the name that config.json has for it."""

from __future__ import annotations

from embedmux.server.checkpoint.folder import Config

GATES = {"gelu": "geglu", "silu": "swiglu", "gelu_pytorch_tanh": "geglu_tanh"}  # the names of lora_matmul


def read_gate(config: Config, key: str) -> str:
    """The activation as ``lora_matmul`` names it; raises ModelRejected for one that is not computed."""
    named = config.string(key, "gelu")
    if named not in GATES:
        config.reject(key, f"one of {', '.join(GATES)}")
    return GATES[named]
