"""A study's finished runs → a page for each table and figure: Markdown, CSV, SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa

from pipeline.experiments.paper import figures, numbers, tables
from pipeline.experiments.paper.decodings import NEEDED, SHARES, point
from pipeline.experiments.paper.measure import Measured, measure
from pipeline.experiments.paper.replays import read_replays
from pipeline.experiments.paper.study import Group, Study
from pipeline.markdown import table
from pipeline.output.run_folder import MANIFEST, finished_shards, read_manifest, read_run
from pipeline.report.counting import count
from pipeline.report.curves import refined_by
from pipeline.report.export import export
from pipeline.report.samples import read_rows
from pipeline.storage.storage import Storage

REPLAYED = {"figure2": ("fixed",), "figure5": tuple(point("top_p", s) for s in SHARES if s > 0)}
"""Figure → the decodings of which it needs replayed rows."""
FIGURE_COLUMNS = {
    "figure2": ("pass", "kl"),
    "figure3": ("step", "share"),
    "figure4": ("r_f", "accuracy", "low", "high", "forwards"),
    "figure5": ("top_p", "accuracy", "low", "high", "forwards", "token_ratio"),
}
TITLES = {
    "figure2": "KL divergence to the final answer, by pass",
    "figure3": "Refinement that has converged, by step",
    "figure4": "Accuracy over r_f",
    "figure5": "Accuracy and share of mixed tokens, over top_p",
}
SHOWN_POINTS = 25
"""Points of a curve that a page lists; its CSV has all."""


class Pages:
    """Writes pages of one study; a run that several of them show is scored once."""

    def __init__(
        self,
        study: Study,
        num_replayed: int,
        on_run: Callable[[str], None] = lambda folder: None,
    ) -> None:
        """num_replayed: the value of `--replay-rows`. on_run: called with the folder of every run
        before it is scored."""
        self._study, self._num_replayed, self._on_run = study, num_replayed, on_run
        self._measured: dict[str, Measured | None] = {}

    def write(self, item: str) -> list[str]:
        """Write a table's or figure's files; their names. Runs that are not whole are left out.

        Raises ValueError where a run cannot be scored or nothing of the item was decoded.
        """
        results = self.results(item)
        if not any(results.values()):
            raise ValueError(f"{self._study.output}: nothing of {item} is decoded yet")
        folder = Storage(self._study.output)
        if item in tables.COLUMNS:
            folder.write(f"{item}.csv", numbers.table_csv(item, results).encode())
            page = tables.document(item, results)
            names = [f"{item}.md", f"{item}.csv"]
        else:
            drawn = self._drawn(item, results)
            columns = ("model", "task", "gen_length", *FIGURE_COLUMNS[item])
            points = [point for one in drawn for point in one.points]
            folder.write(f"{item}.csv", numbers.text(points, columns).encode())
            drawings = export([figure for one in drawn for figure in one.figures], folder)
            page = _figure_page(item, drawn, columns)
            names = [f"{item}.md", f"{item}.csv", *drawings]
        page += "\n## Runs\n\n" + self._provenance(item) + "\n"
        folder.write(f"{item}.md", page.encode())
        return names

    def results(self, item: str) -> dict[Group, dict[str, Measured]]:
        """The numbers of an item's runs, as far as these are whole."""
        found: dict[Group, dict[str, Measured]] = {}
        for group in self._study.groups():
            found[group] = {}
            for name in NEEDED[item]:
                measured = self._of(group, name)
                if measured is not None:
                    found[group][name] = measured
        return found

    def _of(self, group: Group, name: str) -> Measured | None:
        folder = self._study.config(group, name).output
        if folder not in self._measured:
            output = Storage(folder)
            whole = is_whole(output)
            if whole:
                self._on_run(folder)
            self._measured[folder] = measure(output, group.task) if whole else None
        return self._measured[folder]

    def _drawn(self, item: str, results: dict[Group, dict[str, Measured]]) -> list[figures.Drawn]:
        if item == "figure2":
            replays = {g: t for g in results if (t := self._replays(g, "fixed")) is not None}
            if not replays:
                raise ValueError(
                    f"{self._study.output}: no rows are replayed for figure2 yet; run it without "
                    "--tables-only"
                )
            return [figures.figure2(replays)]
        if item == "figure3":
            shares = {group: self._refined(group) for group, runs in results.items() if runs}
            return [figures.figure3(shares, self._tau())]
        setting = "r_f" if item == "figure4" else "top_p"
        drawn = [figures.sweep(item, setting, results)]
        if item == "figure5":
            ratios = {g: found for g in results if (found := self._by_share(g))}
            drawn += [figures.token_ratio(ratios)] if ratios else []
        return drawn

    def _by_share(self, group: Group) -> dict[float, pa.Table]:
        tables = {s: self._replays(group, point("top_p", s)) for s in SHARES if s > 0}
        return {share: table for share, table in tables.items() if table is not None}

    def _replays(self, group: Group, name: str) -> pa.Table | None:
        output = Storage(self._study.config(group, name).output)
        return read_replays(output, self._num_replayed)

    def _refined(self, group: Group) -> dict[int, float]:
        run = read_run(Storage(self._study.config(group, "lrd").output))
        _, chosen = count(run, 0)
        rows = read_rows(run, chosen.curves)
        return refined_by(list(rows.values()), self._tau())

    def _tau(self) -> float:
        return self._study.config(self._study.groups()[0], "lrd").decoding.tau_refine

    def _provenance(self, item: str) -> str:
        """The runs' settings and dates, as their manifests have them."""
        lines = []
        for group in self._study.groups():
            for name in NEEDED[item]:
                output = Storage(self._study.config(group, name).output)
                if is_whole(output):
                    lines.append(_run_line(output))
        return table(["run", "begun (UTC)", "replicas", "slots", "decoding"], dict.fromkeys(lines))


def is_whole(output: Storage) -> bool:
    """Whether a run is there and all its shards are."""
    if output.kind(MANIFEST) == "missing":
        return False
    try:
        finished_shards(output)
    except ValueError:
        return False
    return True


def _run_line(output: Storage) -> tuple[str, ...]:
    manifest = read_manifest(output)
    settings = manifest.settings
    shown = ("r_f", "top_p", "tau_refine", "tau_decode", "max_refine_steps", "refinement")
    rest = ("early_stop", "stop_max_entropy", "entropy_threshold", "tokens_per_step")
    decoding = settings["decoding"]
    words = [f"{name}={decoding[name]}" for name in (*shown, *rest) if decoding[name] is not None]
    return (
        output.root.rpartition("/")[2],
        manifest.created[:16],
        str(settings["replicas"] or "by the cluster"),
        str(settings["slots"]),
        ", ".join(words),
    )


def _figure_page(item: str, drawn: Iterable[figures.Drawn], columns: tuple[str, ...]) -> str:
    parts = []
    for one in drawn:
        for figure in one.figures:
            parts += [f"![{figure.title}]({figure.name}.svg)", figure.caption]
        parts += [f"* {remark}" for remark in one.remarks]
        stride = max(1, -(-len(one.points) // (2 * SHOWN_POINTS)))
        shown = [name for name in columns if any(name in p for p in one.points)]
        rows = [[_short(p.get(name, "")) for name in shown] for p in one.points[::stride]]
        parts.append(table(shown, rows))
        if stride > 1:
            parts.append(f"Every {stride}. point; {item}.csv has all.")
    title = f"# Figure {item[-1]}: {TITLES[item]}"
    return "\n\n".join([title, *parts, "## The paper's own", figures.SAYS[item]]) + "\n"


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
