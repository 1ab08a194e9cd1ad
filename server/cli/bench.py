"""``embedmux bench``: load on a running server, and what it answers."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from embedmux.client.blocking import Client
from embedmux.client.load.mix import Share, default_mix, parse_share, with_task
from embedmux.client.load.plan import Plan
from embedmux.client.load.processes import Run, run
from embedmux.client.load.summary import Summary, summarise
from embedmux.client.load.texts import LengthsName
from embedmux.client.records import ModelInfo
from embedmux.client.texts import EncodingName
from embedmux.server.cli import console
from embedmux.server.cli.bench_report import progress, show, texts_of, write_json
from embedmux.server.cli.console import WrongUsage
from embedmux.server.cli.embed import AtLeastOne, served_model
from embedmux.server.cli.lines import SUFFIXES, read_lines, read_plain_lines
from embedmux.server.errors import InvalidRequest, Unavailable

FAILED, INTERRUPTED = 1, 130
PROBE = "probe"
PROBE_TIMEOUT_S = 10.0
# The peak is looked for with more requests under way than any batch needs.
PEAK_WORKERS, PEAK_S, PEAK_WARM_UP_S, SHARE_OF_PEAK = 64, 4.0, 1.0, 0.7
PICTURES = (".png", ".svg", ".pdf")
AboveZero = Annotated[float, Parameter(validator=Number(gt=0))]
NotNegative = Annotated[float, Parameter(validator=Number(gte=0))]


def bench(
    target: str = "localhost:50051",
    *,
    rate: AboveZero | None = None,
    closed: AtLeastOne | None = None,
    duration: AboveZero = 30.0,
    warm_up: NotNegative = 3.0,
    seed: Annotated[int, Parameter(validator=Number(gte=0))] | None = None,
    lengths: LengthsName = "mixed",
    texts: Path | None = None,
    texts_per_request: AtLeastOne = 1,
    task: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    slo: AboveZero = 100.0,
    timeout: AboveZero = 10.0,
    connections: AtLeastOne = 1,
    processes: AtLeastOne = 1,
    max_in_flight: AtLeastOne = 10_000,
    encoding: EncodingName = "float32",
    dimensions: AtLeastOne | None = None,
    model: str | None = None,
    metadata: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Put load on a running server and measure what it answers.

    The load is an open loop: requests arrive at random (a Poisson process) at a rate that does not depend on the
    answers, as users do. Latency counts from the moment a request was due. A server that stalls for a second thus shows
    a second, for all requests that were due meanwhile; a loop that waits for its answers, or counts from the send,
    shows one slow request and leaves out all that it did not send (coordinated omission). That is what --closed does,
    which is good for finding the peak and not for latencies.

    Without --rate and --closed the peak is found by a short closed loop, and the load is 70 % of it.

    Nothing is tried again: a refusal is a result. Latencies are of requests answered OK; goodput are the texts a second
    that were answered within the SLO. Over-long texts are cut, and counted. Ctrl-C ends early and shows what was
    measured.

    Examples:

        embedmux bench

        embedmux bench embeddings.example:50051 --rate 500 --duration 60 --slo 50

        embedmux bench --closed 64 --texts-per-request 32 --lengths long

        embedmux bench --rate 200 --task retrieval:query=3 --task classification=1 --json run.json --plot run.png

        embedmux bench --rate 50 --texts corpus.jsonl --metadata x-embedmux-tenant=load

        embedmux bench --rate 5000 --processes 4 --connections 4

    Parameters
    ----------
    target
        host:port or unix:PATH of the server.
    rate
        Requests that arrive in a second, on average.
    closed
        Instead of a rate: this many workers, each sending its next request when the last was answered.
    duration
        Seconds that are measured.
    warm_up
        Seconds of the same load before, not measured.
    seed
        Repeats arrivals, texts and tasks; default: a new one, which is shown. A server that keeps results has seen the
        texts of a seed that was used before.
    lengths
        Made-up texts, all different: queries of a few words (short), paragraphs (long), or four queries to a paragraph.
    texts
        Draw texts from this file instead: .jsonl with a field `text`, or any other file, a text a line.
    texts_per_request
        Texts in one request; each draws its own task.
    task
        TASK, TASK:ROLE or TASK:ROLE=WEIGHT; repeat it for a mix; `none` is the bare model. Default: all tasks of the
        model and none, in equal shares.
    slo
        Milliseconds within which an answer counts for goodput.
    timeout
        Seconds that a request may take, its gRPC deadline.
    connections
        HTTP/2 connections, used in turn.
    processes
        Processes that share the load; one sends 1,000 to 3,000 requests a second.
    max_in_flight
        Requests that may be under way at once, in an open loop; what is due beyond is counted as not sent.
    encoding
        How values are stored.
    dimensions
        Keep this many leading values; default: the model's full size.
    model
        A model by name; default: the server's first embedder.
    metadata
        KEY=VALUE to send with every request, such as x-embedmux-tenant=load or x-embedmux-priority=bulk; repeat it.
    json
        Write settings, versions and all figures to this file.
    plot
        Write a picture of latencies by percentile and over time to this file; needs embedmux[plot].
    """
    if rate is not None and closed is not None:
        raise WrongUsage("--rate is an open loop and --closed a closed one; leave one of them out")
    if closed is not None and closed < processes:
        raise WrongUsage(f"--closed {closed} is fewer than --processes {processes}, and each process needs a worker")
    check_files(json, plot)
    plan = Plan(
        target=target,
        rate=rate,
        workers=closed or max(PEAK_WORKERS, processes),
        duration_s=duration,
        warm_up_s=warm_up,
        seed=secrets.randbelow(1 << 32) if seed is None else seed,
        mix=asked_mix(task),
        lengths=lengths,
        texts=() if texts is None else file_texts(texts),
        texts_per_request=texts_per_request,
        timeout_s=timeout,
        connections=connections,
        max_in_flight=max_in_flight,
        encoding=encoding,
        dimensions=dimensions,
        model=model,
        metadata=tuple(map(key_and_value, metadata)),
        num_processes=processes,
    )
    with Client(target, metadata=plan.metadata, max_attempts=1, timeout=PROBE_TIMEOUT_S) as client:
        served, version = served_model(client, model), client.info().version
        plan = replace(plan, mix=plan.mix or default_mix(served))
        probe(client, plan)
    peak = None
    if rate is None and closed is None:
        peak = find_peak(plan, slo_ms=slo)
        plan = replace(plan, rate=peak.achieved_rate * SHARE_OF_PEAK)
    done = watched(plan, "measuring")
    summary = summarise(done.answers, plan, slo_ms=slo)
    show(summary, plan, peak=peak)
    if json is not None:
        write_json(json, summary, plan, peak=peak, model=served, server_version=version)
    if plot is not None:
        write_plot(plot, summary, plan, served)
    if done.is_interrupted:
        return INTERRUPTED
    if not summary.num_texts_ok:
        console.fail(f"no text was answered by {target}: {reasons(summary)}")
        return FAILED
    return 0


def check_files(json: Path | None, plot: Path | None) -> None:
    """Raises what would otherwise stop the results from being written after the run."""
    for path in (json, plot):
        if path is not None and not path.parent.is_dir():
            raise WrongUsage(f"output {str(path)!r}: there is no folder {str(path.parent)!r}")
    if plot is not None:
        if plot.suffix not in PICTURES:
            raise WrongUsage(f"plot {str(plot)!r} must end in {' or '.join(PICTURES)}")
        import embedmux.client.load.plot  # noqa: F401, PLC0415 - matplotlib is an extra


def asked_mix(arguments: Sequence[str]) -> tuple[Share, ...]:
    """The shares of the command line."""
    try:
        return tuple(map(parse_share, arguments))
    except InvalidRequest as error:
        raise WrongUsage(str(error)) from error


def key_and_value(argument: str) -> tuple[str, str]:
    """One KEY=VALUE as gRPC metadata, whose keys are in lower case."""
    key, equals, value = argument.partition("=")
    if not key or not equals:
        raise WrongUsage(f"metadata {argument!r} must be KEY=VALUE, such as x-embedmux-tenant=load")
    return key.lower(), value


def file_texts(path: Path) -> tuple[str, ...]:
    """Every text of a file. Raises InvalidRequest for the first line that is none."""
    read = read_lines if path.name.endswith(SUFFIXES) else read_plain_lines
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    found = []
    for line in read([str(path)]):
        if line.text is None:
            raise InvalidRequest(f"{line.place}: {line.error}")
        found.append(line.text.text)
    if not found:
        raise InvalidRequest(f"{path} holds no text; write one a line, or leave --texts out for made-up ones")
    return tuple(found)


def probe(client: Client, plan: Plan) -> None:
    """Raises what would fail every text of a task, before the load starts."""
    for share in plan.mix:
        for error in client.embed([with_task(PROBE, share)], errors="return", **plan.options).errors.values():
            raise type(error)(f"a probe of {share.name} failed: {error}")


def find_peak(plan: Plan, *, slo_ms: float) -> Summary:
    """What a closed loop gets from the server in a few seconds; its texts are not those of the run."""
    closed = replace(plan, duration_s=PEAK_S, warm_up_s=PEAK_WARM_UP_S, seed=plan.seed + 1)
    done = watched(closed, "finding the peak")
    if done.is_interrupted:
        raise KeyboardInterrupt
    peak = summarise(done.answers, closed, slo_ms=slo_ms)
    if not peak.achieved_rate:
        raise Unavailable(f"no peak was found, no text was answered by {plan.target}: {reasons(peak)}")
    return peak


def watched(plan: Plan, name: str) -> Run:
    """The run of ``plan``, with a bar on the terminal."""
    with progress(plan, name) as watch:
        return run(plan, watch)


def reasons(summary: Summary) -> str:
    """Why requests failed: each status, how often, and a message of it."""
    counted = summary.statuses | summary.failed_texts
    found = [f"{name} {count:,} times ({summary.messages[name]})" for name, count in counted.items() if name != "OK"]
    return ", ".join(found) or "nothing was sent in the measured time"


def write_plot(path: Path, summary: Summary, plan: Plan, model: ModelInfo) -> None:
    """The picture of a run."""
    from embedmux.client.load.plot import plot  # noqa: PLC0415 - matplotlib is an extra

    load = f"{plan.workers} workers in a closed loop" if plan.rate is None else f"{plan.rate:,.1f} requests/s offered"
    plot(summary, path, title=f"{model.name} ({model.dtype}, {model.device}): {load}, {texts_of(plan)} each")
