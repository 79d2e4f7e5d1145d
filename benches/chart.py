#!/usr/bin/env python3
"""Draws the charts of README: chart.py, after `report.py` has written the figures.

docs/figures.svg. Left: what a flow costs each system, from the `fleet` table of docs/alternatives.md. Right: what
flowtally's workloads cost, from benches/figures.txt.

docs/new-keys.svg. Flows a second and the longest POST in each second while every flow is a new key: this build, from
benches/new-keys.txt, and flowtally as it was with leveled compaction, from benches/new-keys-leveled.txt.
"""
import os, re

import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt

INK, GRID, OURS, OTHERS = "#57606a", "#8c959f55", "#1f883d", "#8c959f"
HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(HERE, "..", "docs")


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def peers():
    rows, inside = [], False
    for line in open(os.path.join(DOCS, "alternatives.md")):
        if line.startswith("`"):
            inside = line.startswith("`fleet`")
        if inside and line.startswith("|") and re.search(r"\d", line):
            name, us = cells(line)[:2]
            rows.append((name, float(us)))
    return rows


def workloads():
    rows = []
    for line in open(os.path.join(HERE, "figures.txt")):
        if m := re.match(r"blast\.(fleet|hot|march|new|wide|churn)\.cpu_us_settled: ([\d.]+)", line):
            rows.append((m[1], float(m[2])))
    return rows


def plain(axis, title):
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    axis.tick_params(colors=INK, length=0)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set_visible(False)


def bars(axis, rows, title, ours):
    names = [name.replace(", ", ",\n", 1) for name, _ in rows]
    colours = [OURS if ours(name) else OTHERS for name, _ in rows]
    drawn = axis.barh(names, [value for _, value in rows], color=colours, height=0.6)
    axis.bar_label(drawn, [f"{value:.2f}" for _, value in rows], padding=4, color=INK)
    plain(axis, title)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.grid(axis="x", color=GRID, linewidth=0.6)


def save(figure, name):
    figure.tight_layout()
    figure.savefig(os.path.join(DOCS, name), transparent=True, metadata={"Date": None})


def costs():
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3))
    bars(left, peers(), "CPU µs a flow, the same 1,000,000 flows (less is better)", lambda name: name == "flowtally")
    bars(right, workloads(), "flowtally, by workload: CPU µs a flow", lambda name: True)
    save(figure, "figures.svg")


def series(name):
    """Seconds, millions of flows in each, and its longest POST in ms. A second without an answer has none."""
    rows = [line.split() for line in open(os.path.join(HERE, name)) if not line.startswith("#")]
    return [int(row[0]) for row in rows], [int(row[1]) / 1e6 for row in rows], [float(row[2]) for row in rows]


def new_keys():
    figure, (rate, longest) = plt.subplots(1, 2, figsize=(10.4, 3))
    for name, label, colour in (("new-keys-leveled.txt", "leveled compaction", OTHERS), ("new-keys.txt", "flowtally", OURS)):
        seconds, flows, pauses = series(name)
        seconds, flows, pauses = seconds[:-1], flows[:-1], pauses[:-1]  # the last second is not whole
        rate.plot(seconds, flows, color=colour, linewidth=1, label=label)
        answered = [(second, pause) for second, pause in zip(seconds, pauses) if pause > 0]
        longest.scatter(*zip(*answered), color=colour, s=4, label=label)
    plain(rate, "every flow a new key: millions of flows a second")
    plain(longest, "longest POST in each second, ms")
    longest.set_yscale("log")
    rate.set_ylim(bottom=0)
    for axis in (rate, longest):
        axis.set_xlabel("seconds", color=INK)
        axis.grid(color=GRID, linewidth=0.6)
        axis.legend(frameon=False, labelcolor=INK)
    save(figure, "new-keys.svg")


if __name__ == "__main__":
    # Text as text, and no dates or random ids, so that a file changes only with its numbers.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "flowtally", "font.family": "sans-serif", "font.size": 9})
    # Parts that are not recorded yet are not drawn.
    if workloads():
        costs()
    if os.path.exists(os.path.join(HERE, "new-keys.txt")):
        new_keys()
