"""``embedmux kernels``: which kernel answers for each op, and compilation for a GPU. The latter needs Triton."""

import importlib
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from embedmux.server.cli import console

app = App(name="kernels", help="List the kernels; compile those for a GPU ahead of time.")


@app.command(name="list")
def list_kernels() -> None:
    """List the ops and which kernel answers for each on the CPU and on a GPU.

    csrc are the compiled C++ kernels, triton the GPU's; reference is plain torch, which the server refuses to serve
    on unless it is told to (`embedmux serve --allow-reference`).
    """
    ops: Any = importlib.import_module("embedmux.kernels.ops")  # torch, which help does not need
    table = Table("op", "cpu", "cuda", header_style="bold")
    for op in ops.ALL:
        table.add_row(op.name, op.backend("cpu"), op.backend("cuda"))
    screen = console.output()
    screen.print(table)
    screen.print(f"instruction set of the CPU kernels: {ops.cpu_isa()}")


@app.command(name="compile")
def compile_kernels(
    *,
    target: Annotated[list[str], Parameter(negative="")],
    model: str | None = None,
    dtype: str = "bfloat16",
    cache: Path | None = None,
) -> int:
    """Compile the GPU's kernels ahead of time, on any machine.

    A kernel is compiled when it first runs, for the part it runs on, and kept in Triton's cache. This fills the cache
    before that, without a GPU: `embedmux serve --device cuda` with the same cache, the same version of embedmux and
    the same version of Triton compiles nothing, if its limits of tokens and adapters are the usual ones (others make
    other graphs, and some kernels are compiled when it starts). Put the cache into the image, or copy it to the
    machine. (Triton builds a small library of its own at its first start there, for which it needs a C compiler.)

    The table shows what each kernel became: registers of a thread, shared memory of a block, how full it keeps a
    multiprocessor, and whether its products run on tensor cores. The exit code is 1 if one spills registers or does
    not fit the part.

    Examples:

        embedmux kernels compile --target sm_90 --model minilm

        embedmux kernels compile --target sm_80 --target sm_89 --model models/e5 --dtype float32 --cache image/triton

        embedmux kernels compile --target all

    Parameters
    ----------
    target
        The part: sm_80 (A100), sm_86 (A10, RTX 30), sm_89 (L4, L40S, RTX 40), sm_90 (H100, H200), sm_100 (B200),
        sm_120 (RTX 50), or all. Repeat it for several.
    model
        Compile what this model's forward pass calls: a packaged model, a local directory or a hub id. Default:
        production shapes of many models, which takes minutes.
    dtype
        The dtype the model will be served in.
    cache
        Triton's cache directory; default: TRITON_CACHE_DIR, else ~/.triton/cache.
    """
    command: Any = importlib.import_module("embedmux.server.cli.kernels_compile")
    code: int = command.run(target, model, dtype, cache)
    return code
