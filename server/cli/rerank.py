"""``embedmux rerank``: a query and documents in, the documents by score out."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from embedmux.client.blocking import Client
from embedmux.client.errors import status_of
from embedmux.client.rerank import RankedDocument, Ranking, RerankOptions
from embedmux.client.texts import TruncateName
from embedmux.server.cli import console
from embedmux.server.cli.console import WrongUsage
from embedmux.server.cli.embed import SOME_FAILED, AtLeastOne
from embedmux.server.cli.lines import Line, check_inputs, read_lines, read_plain_lines, refuse_options

SHOWN_WIDTH = 80


def rerank(
    query: str,
    *documents: Annotated[str, Parameter(allow_leading_hyphen=True)],  # for -; check_inputs refuses unknown options
    server: str = "localhost:50051",
    instruction: str | None = None,
    top_n: AtLeastOne | None = None,
    truncate: TruncateName = "none",
    model: str | None = None,
    field: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ("text",),
    lines: Annotated[bool, Parameter(negative="")] = False,
    jsonl: Annotated[bool, Parameter(negative="")] = False,
    echo: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Order documents by how well they answer a query, with a reranker of a running server.

    Documents are texts, or files ending in .jsonl or .jsonl.gz, or - for JSONL on stdin. A line is a JSON object with a
    field `text`, and maybe an `id`. All of them go in one request. Documents that fail do not stop the others: they
    are named on stderr and the exit code is 3.

    Examples:

        embedmux rerank "how do plants eat light" "Leaves build sugar from light." "The moon bends light."

        embedmux rerank "how do plants eat light" corpus.jsonl --top-n 10 --jsonl

        ls notes | embedmux rerank "meeting of May" - --lines

    Parameters
    ----------
    query
        What the documents should answer.
    documents
        Texts, JSONL files, or - for stdin.
    server
        host:port or unix:PATH of the server.
    instruction
        What makes a document a good one, for models with a template; default: the model's own.
    top_n
        Show the best so many; default: all.
    truncate
        What to do with documents over the model's limit: refuse them, or cut their end or start.
    model
        A reranker by name; default: the server's first.
    field
        JSON field that holds the text; repeat it to join several by a space. Default: text.
    lines
        Read files and stdin as plain text, one document a line.
    jsonl
        Print one JSON object for each ranked document instead of a table.
    echo
        Also show the exact text the model read.
    """
    if not documents:
        raise WrongUsage("nothing to rank: give texts, .jsonl files, or - for stdin")
    if lines:
        refuse_options(documents)
        read = list(read_plain_lines(documents))
    else:
        check_inputs(documents)
        read = list(read_lines(documents, fields=field))
    sent = [line for line in read if line.text is not None]
    options: RerankOptions = {
        "instruction": instruction,
        "top_n": top_n,
        "truncate": truncate,
        "echo": echo,
        "model": model,
    }
    with Client(server) as client:
        ranking = client.rerank(query, [line.text.text for line in sent if line.text], errors="return", **options)
    if sent:
        show = show_jsonl if jsonl else show_table
        show(ranking, sent, has_echo=echo)
    failed = [(line, line.error) for line in read if line.error is not None]
    failed += [(sent[index], error) for index, error in sorted(ranking.errors.items())]
    for line, error in failed:
        console.messages().print(f"{line.place} failed: {status_of(error).name}: {error}", soft_wrap=True)
    return SOME_FAILED if failed else 0


def show_jsonl(ranking: Ranking, sent: list[Line], *, has_echo: bool) -> None:
    """One object a line, best first, for other programs."""
    for place, document in enumerate(ranking, start=1):
        record: dict[str, object] = {
            "rank": place,
            "id": sent[document.index].id,
            "score": document.score,
            "logit": document.logit,
            "num_tokens": document.num_tokens,
            "num_tokens_original": document.num_tokens_original,
            "text": document.document,
        }
        if has_echo:
            record["rendered"] = document.rendered
        print(json.dumps(record, ensure_ascii=False))


def show_table(ranking: Ranking, sent: list[Line], *, has_echo: bool) -> None:
    """The documents for a person, and on stderr by what they were ranked."""
    table = Table("rank", "id", "score", "logit", "tokens", "document", header_style="bold")
    for column in (0, 2, 3, 4):
        table.columns[column].justify = "right"
    for place, document in enumerate(ranking, start=1):
        shown = repr(document.rendered) if has_echo else console.shorten(document.document, SHOWN_WIDTH)
        table.add_row(
            str(place),
            sent[document.index].id,
            f"{document.score:.4f}",
            f"{document.logit:.3f}",
            shown_tokens(document),
            shown,
        )
    console.output().print(table)
    cut = sum(document.is_truncated for document in ranking)
    text = f"{len(ranking):,} of {len(sent):,} documents by {ranking.model}, score = {ranking.activation}(logit)"
    console.messages().print(text + (f", {cut:,} truncated" if cut else ""), soft_wrap=True)


def shown_tokens(document: RankedDocument) -> str:
    """The tokens that were read, and of how many if some were not."""
    return f"{document.num_tokens}" + (f" of {document.num_tokens_original}" if document.is_truncated else "")
