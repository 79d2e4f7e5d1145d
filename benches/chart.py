#!/usr/bin/env python3
"""Draws the README's chart from the tables that the benches wrote: chart.py RESULTS.md alternatives.md OUT.svg

Left: what a flow costs each system, from the `fleet` table of alternatives.md. Right: what flowtally's
workloads cost, from RESULTS.md.
"""
import os, re, sys

import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt

INK, GRID, OURS, OTHERS = "#57606a", "#8c959f55", "#1f883d", "#8c959f"


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def peers(path):
    if not os.path.exists(path):
        return []
    rows, inside = [], False
    for line in open(path):
        if line.startswith("`"):
            inside = line.startswith("`fleet`")
        if inside and line.startswith("|") and re.search(r"\d", line):
            name, us = cells(line)[:2]
            rows.append((name, float(us)))
    return rows


def workloads(path):
    rows = []
    for line in open(path):
        m = re.match(r"\| `(\w+)`: CPU µs a flow \| ([\d.]+)", line)
        if m:
            rows.append((m[1], float(m[2])))
    return rows


def bars(axis, rows, title):
    names = [name.replace(", ", ",\n", 1) for name, _ in rows]
    colours = [OURS if name == "flowtally" or len(rows) == 4 else OTHERS for name, _ in rows]
    drawn = axis.barh(names, [value for _, value in rows], color=colours, height=0.6)
    axis.bar_label(drawn, [f"{value:.2f}" for _, value in rows], padding=4, color=INK)
    axis.set_title(title, loc="left", color=INK, fontsize=10)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.tick_params(colors=INK, length=0)
    axis.grid(axis="x", color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for spine in axis.spines.values():
        spine.set_visible(False)


def main():
    results, alternatives, out = sys.argv[1:]
    # Text as text, and no dates or random ids, so that the file changes only with its numbers.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "flowtally", "font.family": "sans-serif", "font.size": 9})
    panels = [(rows, title) for rows, title in (
        (peers(alternatives), "CPU µs a flow, the same 1,000,000 flows (less is better)"),
        (workloads(results), "flowtally, by workload: CPU µs a flow"),
    ) if rows]
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3), squeeze=False)
    for axis, (rows, title) in zip(axes[0], panels):
        bars(axis, rows, title)
    figure.tight_layout()
    figure.savefig(out, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
