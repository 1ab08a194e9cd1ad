"""Texts a second of everybody, as bars."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

FILE = Path(__file__).parents[1] / "results" / "peers.png"


def draw(rates: dict[str, dict[str, float]]) -> None:
    """``rates``: kind of texts -> contender -> texts a second. Prints them, and draws bench/results/peers.png."""
    figure, axes = plt.subplots(1, len(rates), figsize=(11, 4), constrained_layout=True)
    for axis, (kind, found) in zip(axes, rates.items(), strict=True):
        names = sorted(found, key=found.__getitem__)
        colours = ["#2a6f97" if name.startswith("embedmux") else "#b8b8b8" for name in names]
        bars = axis.barh(names, [found[name] for name in names], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(title=f"{kind} texts", xlabel="texts/s, tokenisation included", xlim=(0, 1.15 * max(found.values())))
        axis.spines[["top", "right"]].set_visible(False)
        for name in reversed(names):
            print(f"{kind} texts, {name}: {found[name]:.0f}/s")
    figure.savefig(FILE, dpi=150)
    plt.close(figure)
    print(f"drawn: bench/results/{FILE.name}")
