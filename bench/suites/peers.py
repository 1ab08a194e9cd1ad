"""The CPU engine beside other ways to embed texts: sentence-transformers, PEFT, onnxruntime, OpenVINO, vLLM."""

from pathlib import Path

from harness.report import Report
from peer_figures.adapters import adapter_figures
from peer_figures.minilm import minilm_figures
from peer_figures.qwen import qwen_figures
from peer_figures.start import start_figures
from peer_figures.where import where_the_time_goes


def measure(data: Path | None, *, is_long: bool) -> Report:
    """Every figure of the peers benchmark; ``is_long`` runs more rounds."""
    report = Report("peers")
    if data is not None:
        where_the_time_goes(data)
    minilm_figures(report, data, is_long=is_long)
    adapter_figures(report, data, is_long=is_long)
    qwen_figures(report, is_long=is_long)
    start_figures(report, is_long=is_long)
    return report
