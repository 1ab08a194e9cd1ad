"""``embedmux embed``: texts in, vectors out, in bounded memory."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from embedmux.client.blocking import Client
from embedmux.client.options import PriorityName
from embedmux.client.records import ModelInfo
from embedmux.client.texts import DENSE_ONLY, EmbedOptions, EncodingName, OutputName, RoleName, TruncateName
from embedmux.server.cli.bulk import ErrorFile, answer
from embedmux.server.cli.console import WrongUsage
from embedmux.server.cli.lines import check_inputs, count_lines, read_lines
from embedmux.server.cli.report import Shown, Tally, progress_bar
from embedmux.server.cli.rows import Layout
from embedmux.server.cli.vector_files import check_output, vector_file
from embedmux.server.errors import InvalidRequest, NotFound, Unavailable
from embedmux.server.records import Encoding

SOME_FAILED = 3
PROBE = "probe"
AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]


def embed(
    *inputs: Annotated[str, Parameter(allow_leading_hyphen=True)],  # for -; check_inputs refuses unknown options
    server: str = "localhost:50051",
    task: str | None = None,
    role: RoleName | None = None,
    adapter: str | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    instruction: str | None = None,
    dimensions: AtLeastOne | None = None,
    force_dimensions: Annotated[bool, Parameter(negative="")] = False,
    outputs: Annotated[tuple[OutputName, ...], Parameter(negative="", show_default=False)] = DENSE_ONLY,
    encoding: EncodingName = "float32",
    truncate: TruncateName = "none",
    model: str | None = None,
    tenant: str = "",
    priority: PriorityName | None = None,
    field: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ("text",),
    batch_size: AtLeastOne = 64,
    echo: Annotated[bool, Parameter(negative="")] = False,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Embed texts or JSONL files with a running server.

    Inputs are texts, or files ending in .jsonl or .jsonl.gz, or - for JSONL on stdin. A line is a JSON object with a
    field `text`; it may have an `id`, and a `task`, `role`, `adapter`, `prompt_name`, `prompt` or `instruction` of its
    own.
    Lines that fail do not stop the others: they are listed in OUTPUT's `.errors.jsonl` and the exit code is 3.

    Examples:

        embedmux embed "how do plants eat light" --task retrieval --role query

        embedmux embed corpus.jsonl --task retrieval --role document -o corpus.safetensors

        embedmux embed corpus.jsonl --outputs dense --outputs sparse -o corpus.safetensors

        zcat corpus.jsonl.gz | embedmux embed - --task clustering --encoding int8 --dimensions 256 -o corpus.parquet

    Parameters
    ----------
    inputs
        Texts, JSONL files, or - for stdin.
    server
        host:port or unix:PATH of the server.
    task
        What the vectors are for; `embedmux tasks` lists what the server has.
    role
        Which side of a retrieval task the texts stand on.
    adapter
        An adapter by id, instead of the one that serves the task.
    prompt_name
        A prompt by name, instead of the one for task and role.
    prompt
        A literal prefix, instead of any named prompt; empty for none.
    instruction
        Free words that say what is looked for, for models with a template; default: the model's own.
    dimensions
        Keep this many leading values; default: the model's full size.
    force_dimensions
        Take a size that the model does not declare.
    outputs
        What to make of a text: dense (one vector), sparse (weights by token id), tokens (one vector a token); repeat it
        for several. Default: dense.
    encoding
        How values are stored.
    truncate
        What to do with texts over the model's limit: refuse them, or cut their end or start.
    model
        A model by name; default: the server's first embedder.
    tenant
        Whose work it is, where tenants share a server by weight.
    priority
        interactive or bulk, which gives way to interactive work; default: bulk with --output, else interactive.
    field
        JSON field that holds the text; repeat it to join several by a space. Default: text.
    batch_size
        Texts in one request.
    echo
        Show the exact texts the model read, in the table.
    output
        Write vectors to this .safetensors or .parquet file; default: a table of the first texts.
    """
    if not inputs:
        raise WrongUsage("nothing to embed: give texts, .jsonl files, or - for stdin")
    check_inputs(inputs)
    if output is not None:
        check_output(output)
        if echo:
            raise WrongUsage("--echo shows texts in the table, which --output replaces; leave one of them out")
    total = count_lines(inputs)
    options: EmbedOptions = {
        "task": task,
        "role": role,
        "adapter": adapter,
        "prompt_name": prompt_name,
        "prompt": prompt,
        "instruction": instruction,
        "dimensions": dimensions,
        "force_dimensions": force_dimensions,
        "outputs": outputs,
        "echo": echo,
        "encoding": encoding,
        "truncate": truncate,
        "model": model,
    }
    tally = Tally()
    with ExitStack() as stack:
        chosen: PriorityName = priority or ("interactive" if output is None else "bulk")
        client = stack.enter_context(Client(server, tenant=tenant, priority=chosen))
        size = (dimensions or served_model(client, model).dimensions) if "dense" in outputs else 0
        layout = Layout(Encoding(encoding), size, tuple(dict.fromkeys(outputs)))
        table = Shown(options, layout)
        probe(client, options)
        if output is not None:
            file = stack.enter_context(vector_file(output, layout))
            errors = stack.enter_context(closing(ErrorFile(output.with_suffix(".errors.jsonl"))))
        bar = stack.enter_context(progress_bar())
        row = bar.add_task("embedding", total=total, rate="")
        lines = read_lines(inputs, fields=field)
        for answered in answer(client, lines, options, batch_size=batch_size, layout=layout):
            if output is None:
                table.add(answered)
            else:
                file.write(answered.rows)
                errors.write(answered)
            tally.add(answered)
            bar.update(row, completed=tally.num_texts, rate=tally.rate())
        bar.update(row, total=tally.num_texts)
    if output is None:
        table.show(tally.num_texts)
    tally.show(output)
    return SOME_FAILED if tally.num_failed else 0


def probe(client: Client, options: EmbedOptions) -> None:
    """Raises what would fail every line, such as a task that is not there, before any line is read."""
    names = ("task", "adapter", "prompt_name", "instruction", "dimensions")
    if any(options.get(name) for name in names) or options["outputs"] != DENSE_ONLY:
        for error in client.embed(PROBE, errors="return", **options).errors.values():
            raise error


def served_model(client: Client, name: str | None) -> ModelInfo:
    """The embedder called ``name``, or the server's first."""
    info = client.info()
    if not info.models:
        raise Unavailable(f"{client.target} serves no model yet, it is {info.state}; try again when it is serving")
    embedders = {model.name: model for model in info.models if model.kind == "embedder"}
    if name in embedders or (name is None and embedders):
        return embedders[name or next(iter(embedders))]
    known = ", ".join(embedders) or "none"
    if name in [model.name for model in info.models]:
        raise InvalidRequest(f"model {name!r} is a reranker; name an embedder of {client.target}: {known}")
    if name is None:
        raise NotFound(f"{client.target} serves rerankers only; serve an embedder too, --model repeats")
    raise NotFound(f"model {name!r} is not served; {client.target} has {known}")
