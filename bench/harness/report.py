"""Figures with their bars, as a table and as one JSON line."""

import importlib.metadata
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGES = ("embedmux", "torch", "transformers", "sentence-transformers", "peft", "grpcio", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and its bar: ``>= x``, ``> x``, ``<= x``, or ``printed``, which any number passes."""

    name: str
    value: float | None
    unit: str
    bar: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value reaches the bar; no value never does."""
        if self.value is None:
            return False
        if self.bar == "printed":
            return True
        sign, number = self.bar.split()
        limit = float(number)
        return {">=": self.value >= limit, ">": self.value > limit, "<=": self.value <= limit}[sign]


@dataclass
class Report:
    """A benchmark's figures. ``needs`` names how many of the figures of a group must pass, where not all must."""

    bench: str
    figures: list[Figure] = field(default_factory=list)
    groups: dict[str, tuple[list[str], int]] = field(default_factory=dict)

    def add(self, name: str, value: float | None, unit: str, bar: str, note: str = "") -> None:
        """One more figure."""
        self.figures.append(Figure(name, value, unit, bar, note))

    @property
    def passed(self) -> bool:
        """Whether every figure reached its bar, and enough figures of each group."""
        grouped = {name for names, _ in self.groups.values() for name in names}
        by_name = {figure.name: figure.passed for figure in self.figures}
        enough = all(sum(by_name[name] for name in names) >= needed for names, needed in self.groups.values())
        return enough and all(figure.passed for figure in self.figures if figure.name not in grouped)

    def as_json(self) -> dict[str, object]:
        """The object of the last line."""
        figures = [{**asdict(figure), "pass": figure.passed} for figure in self.figures]
        for figure in figures:
            if not figure["note"]:
                del figure["note"]
        return {"bench": self.bench, "pass": self.passed, "figures": figures}

    def print(self) -> None:
        """The table, then the JSON line."""
        table = Table(title=f"bench {self.bench}", title_justify="left")
        for column in ("figure", "value", "unit", "bar", "", "note"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for figure in self.figures:
            value = "-" if figure.value is None else f"{figure.value:.6g}"
            mark = "[green]pass[/]" if figure.passed else "[red]below[/]"
            table.add_row(figure.name, value, figure.unit, figure.bar, mark, figure.note)
        Console(width=max(120, Console().width)).print(table)
        print(json.dumps(self.as_json()), flush=True)

    def save(self, folder: Path) -> None:
        """Keeps the result with the machine and the versions, one line a run."""
        run = {
            "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "machine": {"processor": processor(), "cores": os.cpu_count()},
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            **self.as_json(),
        }
        folder.mkdir(exist_ok=True)
        with (folder / f"{self.bench}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")


def processor() -> str:
    """The processor's name and the instruction sets that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"}
    return f"{facts.get('model name', '?')} ({' '.join(sorted(wanted & set(facts.get('flags', '').split())))})"
