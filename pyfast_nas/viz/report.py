"""One self-contained HTML page about a run: no script, no font, no address outside itself."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyfast_nas.viz.alphas import alphas_over_time, final_alphas
from pyfast_nas.viz.chart import Group, Line, dot_plot, line_chart
from pyfast_nas.viz.findings import examine
from pyfast_nas.viz.graph import cell_svg
from pyfast_nas.viz.markup import escape, printable
from pyfast_nas.viz.pareto import pareto_section, pareto_svg
from pyfast_nas.viz.run_folder import RunFolder
from pyfast_nas.viz.style import style_sheet
from pyfast_nas.viz.tables import measured, settings, times
from pyfast_nas.viz.units import duration, memory, percent

__all__ = ["render_report", "write_report"]

_MARKS = {"good": "✓ fine", "note": "ℹ note", "warn": "⚠ warning"}


def write_report(run_dir: Path | str) -> Path:
    """Write ``report.html`` and its larger pictures from the other files of a run folder.

    The same files always give the same bytes.

    Args:
        run_dir: The folder that a search wrote.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: If there is no such folder.
        DataError: If it is no run folder, or a file of it cannot be understood.

    Example:
        >>> write_report("no/such/run")
        Traceback (most recent call last):
        ...
        FileNotFoundError: run: no/such/run must be the folder of a run
    """
    run = RunFolder.read(run_dir)
    for table in run.genotype.cells if run.genotype is not None else ():
        _replace(run.path / f"{table}.svg", cell_svg(run.genotype, table))
    if run.pareto is not None:
        _replace(run.path / "pareto.svg", pareto_svg(run.pareto))
    return _replace(run.path / "report.html", render_report(run))


def render_report(run: RunFolder) -> str:
    """Return the page about a run as text.

    Example:
        >>> run = RunFolder(path=Path("."), config={"algorithm": {"name": "darts"}})
        >>> render_report(run).splitlines()[0]
        '<!doctype html>'
    """
    algorithm, space, data = (
        printable(run.config.get(key, {}).get("name", "unknown"), 60)
        for key in ("algorithm", "space", "data")
    )
    title = f"Architecture search on {data}: {algorithm} in the {space} space"
    sections = [
        _section("What to know before believing it", _checks(run)),
        _section("Against random architectures", _comparison(run)),
        _section("Among all architectures", measured(run)),
        _section("Accuracy against cost", pareto_section(run.pareto), long=True),
        _section("The architecture", _cells(run), long=True),
        _section("Architecture parameters at the end", final_alphas(run), long=True),
        _section("Architecture parameters over time", alphas_over_time(run), long=True),
        _section("Curves", _curves(run)),
        _section("Time and memory", times(run)),
        _section("Settings", settings(run), long=True),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{style_sheet()}</style></head><body><main>",
        f"<header><h1>{escape(title)}</h1>{_lead(run)}</header>",
        *filter(None, sections),
        f'<p class="small soft">Written by pyfast_nas {escape(_version(run))} from the files of '
        f"the run folder alone.</p>",
        "</main></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> Path:
    """Write beside and move over: a reader never meets half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def _section(title: str, body: str, *, long: bool = False) -> str:
    if not body:
        return ""
    style = ' class="long"' if long else ""
    return f"<section{style}><h2>{title}</h2>\n{body}</section>"


def _version(run: RunFolder) -> str:
    return printable(run.config.get("version", "of an unknown version"), 40)


def _lead(run: RunFolder) -> str:
    evaluation = run.evaluation or {}
    verdict = (
        evaluation.get("verdict") if evaluation.get("verdict") in {"better", "worse"} else "tie"
    )
    sentence = evaluation.get("sentence") or (
        "The result was not trained from scratch, so this run says nothing about how good it is."
    )
    return (
        f"<p class='soft'>{_searched_what(run)}</p>\n"
        f'<p class="verdict {verdict}">{escape(sentence)}</p>\n{_tiles(run)}'
    )


def _searched_what(run: RunFolder) -> str:
    data, search = run.config.get("data", {}), run.config.get("search", {})
    parts = []
    if data.get("train") is not None:
        image = "x".join(str(size) for size in data.get("image", []))
        sizes = f"{data['train']} training, {data.get('valid', '?')} validation and "
        sizes += f"{data.get('test', '?')} test images"
        parts.append(f"{sizes}{f' of {image}' if image else ''}, {data.get('num_classes')} classes")
    if search.get("epochs") is not None:
        parts.append(f"{search['epochs']} epochs, batches of {search.get('batch_size', '?')}")
    if search.get("seed") is not None:
        parts.append(f"seed {search['seed']}")
    return escape("; ".join(parts) + "." if parts else "")


def _accuracies(run: RunFolder, key: str) -> list[float]:
    values = [entry.get("accuracy") for entry in (run.evaluation or {}).get(key, [])]
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _mean_and_spread(values: Sequence[float]) -> str:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return percent(mean)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{100 * mean:.1f} ± {percent(spread)}"


def _tiles(run: RunFolder) -> str:
    tiles = []
    searched, rivals = _accuracies(run, "searched"), _accuracies(run, "random")
    if searched:
        times = "one training" if len(searched) == 1 else f"{len(searched)} trainings"
        tiles.append((_mean_and_spread(searched), f"test accuracy of the result ({times})"))
    if rivals:
        count = (
            "one random architecture" if len(rivals) == 1 else f"{len(rivals)} random architectures"
        )
        tiles.append((_mean_and_spread(rivals), f"test accuracy of {count}, trained alike"))
    sizes = [entry.get("parameters") for entry in (run.evaluation or {}).get("searched", [])]
    if sizes and isinstance(sizes[0], int):
        tiles.append((f"{sizes[0]:,}".replace(",", " "), "parameters of the trained result"))
    if "search" in run.totals:
        tiles.append((duration(run.totals["search"]), "search time"))
    if peak := run.peak_memory:
        tiles.append((memory(peak), "peak memory"))
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in tiles
    )
    return f'<div class="tiles">{boxes}</div>' if boxes else ""


def _checks(run: RunFolder) -> str:
    items = "".join(
        f'<li class="{finding.level}"><span class="mark">{_MARKS[finding.level]}</span>'
        f"<span>{escape(finding.text)}</span></li>"
        for finding in examine(run)
    )
    return f'<ul class="checks">{items}</ul>'


def _comparison(run: RunFolder) -> str:
    evaluation = run.evaluation
    if not evaluation:
        return ""
    groups = [
        Group(
            name=key,
            values=_accuracies(run, key),
            colour=colour,
            labels=[f"{key}, seed {entry.get('seed')}" for entry in evaluation.get(key, [])],
        )
        for colour, key in enumerate(("searched", "random"))
    ]
    plot = dot_plot(groups, title="Test accuracy, searched and random")
    trained = [
        f"{evaluation[key]} {key}"
        for key in ("epochs", "channels", "cells")
        if evaluation.get(key) is not None
    ]
    how = f"Each trained from scratch alike ({', '.join(trained)}). " if trained else ""
    lines = [
        f"<p>{escape(_difference(evaluation))}</p>",
        f'<div style="max-width:560px">{plot}</div>',
        f'<p class="small soft">{escape(how)}A dot is one training, the line the mean, the bar one '
        "standard deviation to either side.</p>",
    ]
    return "\n".join(lines)


def _difference(evaluation: Mapping[str, Any]) -> str:
    words = {"tie": "A tie.", "better": "Search did better.", "worse": "Search did worse."}
    text = words.get(evaluation.get("verdict"), "")
    difference, error = evaluation.get("difference"), evaluation.get("standard_error")
    if isinstance(difference, int | float) and math.isfinite(difference):
        text += f" Difference of the means {100 * difference:+.2f} percentage points"
        if isinstance(error, int | float) and math.isfinite(error):
            text += f", standard error {100 * error:.2f}"
        text += "."
    return text.strip()


def _cells(run: RunFolder) -> str:
    if run.genotype is None:
        return ""
    parts = []
    for table in run.genotype.cells:
        picture = cell_svg(run.genotype, table, inline=True)
        parts.append(f"<h3>{escape(table)}</h3>\n<div class='wide'>{picture}</div>")
    return "\n".join(parts)


def _curves(run: RunFolder) -> str:
    def lines(*names: tuple[str, str]) -> list[Line]:
        return [
            Line(name=name, points=run.series(key), colour=index)
            for index, (name, key) in enumerate(names)
        ]

    skips = [
        Line(
            name=printable(table, 12),
            points=[
                (line["epoch"], line["skip_count"][table])
                for line in run.epochs
                if table in line.get("skip_count", {})
            ],
            colour=index,
        )
        for index, table in enumerate(
            sorted({t for e in run.epochs for t in e.get("skip_count", {})})
        )
    ]
    figures = [
        ("Loss", line_chart(lines(("train", "train/loss"), ("valid", "valid/loss")), title="Loss")),
        (
            "Accuracy",
            line_chart(
                lines(("train", "train/accuracy"), ("valid", "valid/accuracy")),
                title="Accuracy",
                unit="%",
            ),
        ),
        (
            "Entropy of the edges (1 = undecided)",
            line_chart(lines(("entropy", "entropy")), title="Entropy", bottom=0.99, top=1),
        ),
        (
            "Lead of the best over the second candidate",
            line_chart(lines(("lead", "margin")), title="Lead", bottom=0),
        ),
        (
            "Largest eigenvalue of the Hessian in the architecture",
            line_chart(
                lines(("eigenvalue", "curvature"), ("average", "curvature_average")),
                title="Curvature",
            ),
        ),
        (
            "Skip connections among the kept edges",
            line_chart(skips, title="Skip connections", bottom=0, top=1, whole=True),
        ),
        (
            "Of all architectures: value of the derived one in the table",
            line_chart(lines(("valid", "table/valid"), ("test", "table/test")), title="Table"),
        ),
        (
            "Of all architectures: rank of the derived one in the table",
            line_chart(
                lines(("valid", "table/valid_rank"), ("test", "table/test_rank")),
                title="Rank in the table",
                whole=True,
            ),
        ),
    ]
    body = "".join(
        f"<figure><figcaption>{name}</figcaption>{picture}</figure>"
        for name, picture in figures
        if picture
    )
    return f'<div class="charts">{body}</div>' if body else ""
