"""LoRA on a frozen encoder, through peft."""

import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

_BERT_LINEARS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
_LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Every linear layer inside the encoder's blocks; poolers and heads stay as they are.
TARGETS = {
    "bert": _BERT_LINEARS,
    "roberta": _BERT_LINEARS,
    "xlm-roberta": _BERT_LINEARS,
    "modernbert": ("Wqkv", "Wo", "Wi"),
    "eurobert": _LLAMA_LINEARS,
    "qwen3": _LLAMA_LINEARS,
}


def add_adapter(encoder: SentenceTransformer, *, rank: int, alpha: float) -> PeftModel:
    """Put a fresh LoRA pair (B = 0, so no change yet) beside every linear layer of the frozen encoder, in place."""
    backbone = encoder[0].auto_model
    architecture = backbone.config.model_type
    if architecture not in TARGETS:
        raise ValueError(
            f"model type {architecture!r} has no list of layers to adapt; the known ones are {', '.join(TARGETS)}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        target_modules=list(TARGETS[architecture]),
        bias="none",
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    with warnings.catch_warnings():
        # peft asks transformers a question under a name that transformers is about to rename.
        warnings.simplefilter("ignore", FutureWarning)
        adapter = get_peft_model(backbone, config)
    return adapter.eval()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The weights that training changes, in the order of the model's parameters."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def copy_weights(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Write the values of `source` into `target`, tensor by tensor."""
    with torch.no_grad():
        for old, new in zip(target, source, strict=True):
            old.copy_(new)
