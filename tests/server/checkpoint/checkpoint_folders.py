"""Small model folders: JSON files and headers of weights, as the published repositories lay them out."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

Files = dict[str, Any]


def config(model_type: str, kind: str, **more: Any) -> dict[str, Any]:
    """config.json with what a contract is read from."""
    found = {"model_type": model_type, "architectures": [kind], "hidden_size": 64, "max_position_embeddings": 512}
    return found | more


BERT = config("bert", "BertModel")
XLM_R = config("xlm-roberta", "XLMRobertaModel", max_position_embeddings=514, pad_token_id=1)
M3 = config("xlm-roberta", "XLMRobertaModel", max_position_embeddings=8194, pad_token_id=1)
QWEN3 = config("qwen3", "Qwen3ForCausalLM", max_position_embeddings=40960)
MODERNBERT = config("modernbert", "ModernBertModel", max_position_embeddings=8192)
NEW = config(
    "new", "NewModel", max_position_embeddings=8192,
    auto_map={"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
              "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
)  # fmt: skip
FLASH = config(
    "xlm-roberta", "XLMRobertaModel", max_position_embeddings=8194, pad_token_id=1, position_embedding_type="rotary",
    auto_map={"AutoConfig": "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig"},
)  # fmt: skip
del FLASH["model_type"]  # as the published config has none


STACKED = "roberta__embeddings__token_type_embeddings__parametrizations__weight__0__lora_A"  # for ``weights``


def transformer(kind: str = "sentence_transformers.models.Transformer") -> dict[str, Any]:
    """The first entry of modules.json."""
    return {"idx": 0, "name": "0", "path": "", "type": kind}


def module(place: int, kind: str, room: str = "sentence_transformers.models") -> dict[str, Any]:
    """An entry of modules.json with a folder of its own."""
    return {"idx": place, "name": str(place), "path": f"{place}_{kind}", "type": f"{room}.{kind}"}


def pooled(mode: str, first: str = "sentence_transformers.models.Transformer") -> Files:
    """modules.json and 1_Pooling of a model that pools and normalises, in the old form."""
    flags = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    return {
        "modules.json": [transformer(first), module(1, "Pooling"), module(2, "Normalize")],
        "1_Pooling/config.json": {"word_embedding_dimension": 64, **flags, "include_prompt": True},
    }


def prompted(default: str | None = None, **prompts: str) -> Files:
    """config_sentence_transformers.json."""
    return {"config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": default}}


def limited(max_tokens: int) -> Files:
    """sentence_bert_config.json."""
    return {"sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False}}


def vocabulary(*tokens: str) -> Files:
    """tokenizer.json whose tokens have their places as ids."""
    return {"tokenizer.json": {"model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}}}}


def unigram(*tokens: str) -> Files:
    """The same as XLM-R has it: pairs of token and score."""
    return {"tokenizer.json": {"model": {"type": "Unigram", "vocab": [[token, -1.0] for token in tokens]}}}


def dense(size: int, out: int, **more: Any) -> dict[str, Any]:
    """config.json of a Dense module."""
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    return {"in_features": size, "out_features": out, **identity} | more


def weights(**shapes: tuple[int, ...]) -> bytes:
    """A safetensors file of float32 zeros; double underscores in names stand for dots."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name.replace("__", ".")] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def write(folder: Path, values: dict[str, Any], *files: Files) -> Path:
    """Writes config.json, an empty tokenizer.json and the files: bytes and text as they are, anything else as JSON.

    A file that is None is left out.
    """
    every: Files = {"config.json": values, **vocabulary()}
    for more in files:
        every |= more
    for name, content in every.items():
        if content is None:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
