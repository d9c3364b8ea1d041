"""From the numbers to the documents: charts, and the tables between <!-- bench:NAME --> marks.

    report.py FILE FOLDER       FILE: of run.py; FOLDER: of the documents, with README.md above it
"""

import json
import os
import re
import sys

import matplotlib

import curves
import results
import rows

matplotlib.use("svg")
matplotlib.rcParams.update(
    {"svg.hashsalt": "pebble", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)
from matplotlib import pyplot  # noqa: E402

COLOURS = {
    "ours": "#c2410c",
    "Pebble": "#1d4ed8",
    "ProcessPoolExecutor": "#0f766e",
    "multiprocessing.Pool": "#7c3aed",
    "the best": "#64748b",
}


def number(value):
    """Three digits, as many as anybody should read."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def label_of(name):
    return "this package" if name == "ours" else "Pebble (registry)" if name == "Pebble" else name


# ---- Charts


def save(figure, folder, name):
    figure.savefig(os.path.join(folder, f"{name}.svg"), bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def draw_bars(measured, folder):
    shown = [row for row in rows.ALL if row.name in measured]
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(shown) + 1))
    for place, row in enumerate(shown):
        medians = results.medians_of(measured[row.name])
        for against, ratio, _ in results.ratios_of(row, medians):
            lower = against != "Pebble"
            axes.barh(place + 0.2 * (1 if lower else -1), ratio, 0.36,
                      color=COLOURS[against], label=None)
            axes.text(ratio * 1.04, place + 0.2 * (1 if lower else -1), f"{number(ratio)} x",
                      va="center", fontsize=7)
    axes.axvline(1, color=COLOURS["ours"], linewidth=2)
    axes.set_yticks(range(len(shown)), [row.name for row in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times what this package takes (the line); more is slower or larger")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in ("Pebble", "the best")]
    axes.legend(handles, ["Pebble (registry)", "the best of all peers"], loc="lower right")
    save(figure, folder, "peers")


def draw_curve(curve, found, folder):
    figure, axes = pyplot.subplots(figsize=(4.4, 3.2))
    for name in curve.names:
        points = [(x, found[name][str(x)]) for x in curve.points if str(x) in found[name]]
        points = [(x, y) for x, y in points if not isinstance(y, str)]
        if points:
            axes.plot(*zip(*points), marker="o", markersize=3, color=COLOURS[name],
                      linewidth=2 if name == "ours" else 1, label=label_of(name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(curve.x)
    axes.set_ylabel(curve.y)
    axes.set_title(curve.title, fontsize=9)
    axes.legend(fontsize=7)
    save(figure, folder, curve.key)


# ---- Tables


def verdict(ratio, wanted):
    if wanted is None:
        return f"{number(ratio)} x"
    reached = f"{number(ratio)} x" if ratio >= wanted else f"**{number(ratio)} x: not reached**"
    return f"{reached} (to reach: {wanted:g} x)"


def row_line(row, found):
    medians = results.medians_of(found)
    if "ours" not in medians:
        return f"| {row.name}, {row.unit} | failed: {found.get('ours')} | | | | |"
    best = results.best_of(medians)
    ratios = {against: verdict(*rest) for against, *rest in results.ratios_of(row, medians)}
    pebble = number(medians["Pebble"]) if "Pebble" in medians else found.get("Pebble", "")
    peer = f"{best} {number(medians[best])}" if best is not None else ""
    cells = [f"{row.name}, {row.unit}", number(medians["ours"]), pebble, peer]
    cells += [ratios.get("Pebble", ""), ratios.get("the best", "")]
    return "| " + " | ".join(cells) + " |"


HEADER = "| | this package | Pebble | best peer | Pebble / ours | best / ours |\n|---|---|---|---|---|---|"


def table(measured, short):
    lines = [HEADER]
    for row in rows.ALL:
        if row.name in measured and (row.telling or not short):
            lines.append(row_line(row, measured[row.name]))
    return "\n".join(lines)


def table_of_all(measured):
    """Every contender's median."""
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    lines = ["| | " + " | ".join(label_of(name) for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows.ALL:
        if row.name not in measured:
            continue
        medians = results.medians_of(measured[row.name])
        cells = [
            number(medians[name]) if name in medians else measured[row.name].get(name, "")
            for name in names
        ]
        lines.append(f"| {row.name}, {row.unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_curve(curve, found):
    lines = [
        f"{curve.title}, {curve.y}:",
        "",
        f"| {curve.x} | " + " | ".join(f"{point:,}" for point in curve.points) + " |",
        "|---" * (len(curve.points) + 1) + "|",
    ]
    for name in curve.names:
        cells = [found[name].get(str(point), "") for point in curve.points]
        shown = [cell if isinstance(cell, str) else number(cell) for cell in cells]
        lines.append(f"| {label_of(name)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def describe(machine):
    peers = ", ".join(machine["peers"])
    return (
        f"{machine['date']}: {machine['processors']} processors ({machine['model']}), "
        f"Linux {machine['kernel']}, CPython {machine['python']}, "
        f"median of rounds: {machine['rounds']}. Peers: {peers}."
    )


# ---- Documents


def replace_block(path, name, text):
    with open(path) as file:
        before = file.read()
    mark, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.escape(mark) + ".*?" + re.escape(end)
    after, count = re.subn(pattern, lambda _: f"{mark}\n{text}\n{end}", before, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{path} has {count} blocks {mark} … {end}, not one")
    with open(path, "w") as file:
        file.write(after)


def main():
    with open(sys.argv[1]) as file:
        found = json.load(file)
    if len(found["rows"]) < len(rows.ALL) or len(found["curves"]) < len(curves.ALL):
        print("not everything has been measured yet: the documents stay as they are")
        return
    docs = sys.argv[2]
    charts = os.path.join(docs, "charts")
    os.makedirs(charts, exist_ok=True)
    draw_bars(found["rows"], charts)
    drawn = [curve for curve in curves.ALL if curve.key in found["curves"]]
    for curve in drawn:
        draw_curve(curve, found["curves"][curve.key], charts)
    performance = os.path.join(docs, "performance.md")
    replace_block(performance, "machine", describe(found["machine"]))
    replace_block(performance, "rows", table(found["rows"], short=False))
    replace_block(performance, "all", table_of_all(found["rows"]))
    tables = [table_of_curve(curve, found["curves"][curve.key]) for curve in drawn]
    replace_block(performance, "curves", "\n\n".join(tables))
    replace_block(os.path.join(docs, "..", "README.md"), "rows", table(found["rows"], short=True))


if __name__ == "__main__":
    main()
