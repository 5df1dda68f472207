"""Draws the perplexity of runs against minutes of training, each beside that of PyTorch's training at the same time:

python tests/benchmarks/plot_minutes.py --metrics hour/metrics.jsonl --peer hour_compiled.json --output minutes.png

--peer is what bench_train.py --quality --peers_alone wrote, of one peer. Where several pairs are given, those of each
pair were trained side by side, and different pairs at different times.
"""

import json
import math
import os
import pathlib
import sys

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from bench_train import COLORS, TITLES
from plot_run import records_of

from utils import ArgumentParser, UserError, command_line, number

LINES = "-", "--", ":"  # of the first pair, the second, the third


def curve_of_run(records: list[dict]) -> tuple[list, list]:
    """Minutes of training before each evaluation, by the reports' updates a second, and its loss."""
    steps, seconds = [0], [0.0]
    for record in records:
        if record["event"] == "train":
            seconds.append(seconds[-1] + (record["step"] - steps[-1]) / record["steps_per_second"])
            steps.append(record["step"])
    evaluations = [record for record in records if record["event"] == "evaluation"]
    minutes = np.interp([record["step"] for record in evaluations], steps, seconds) / 60
    return minutes.tolist(), [record["eval_loss"] for record in evaluations]


def curve_of_peer(path: str) -> tuple[str, tuple[list, list]]:
    """The peer's name; minutes of training before each evaluation, by the median update, and its loss."""
    results = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if len(results["seconds_per_update"]) != 1:
        raise UserError(f"--peer {path}: of one peer, please")
    [name] = results["seconds_per_update"]
    seconds, evaluations = results["seconds_per_update"][name]["median"], results["evaluation_losses"]
    return name, ([update * seconds / 60 for update in evaluations["updates"]], evaluations[name])


def table(curves: list[tuple], marks: list[float]) -> str:
    """Perplexities after so many minutes, in Markdown; in between along a line of the losses."""
    lines = ["| perplexity after | " + " | ".join(f"{mark:g} minutes" for mark in marks) + " | the end |"]
    lines.append("|---" + "|---:" * (len(marks) + 1) + "|")
    for title, _, (minutes, losses) in curves:
        reached = [math.exp(np.interp(mark, minutes, losses)) if mark <= minutes[-1] else None for mark in marks]
        cells = ["" if perplexity is None else f"{perplexity:,.1f}" for perplexity in reached]
        cells.append(f"{math.exp(losses[-1]):,.1f} ({minutes[-1]:.0f} minutes)")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Draws perplexity against minutes of training.")
    parser.add_argument("--metrics", nargs="+", required=True, help="metrics.jsonl of runs")
    parser.add_argument(
        "--peer",
        nargs="+",
        required=True,
        help="for each, a .json of bench_train.py --quality --peers_alone, of one peer",
    )
    parser.add_argument(
        "--marks", nargs="+", type=number(float, 0), default=[5, 15, 30, 60], help="minutes, of the table"
    )
    parser.add_argument("--output", required=True, help="the figure to write, .png, .svg or .pdf")
    return parser.parse_args(argv)


def main(argv: list | None = None) -> None:
    import matplotlib.figure

    args = parse_arguments(argv)
    if not len(args.metrics) == len(args.peer) <= len(LINES):
        raise UserError(f"one --peer for each of --metrics, and at most {len(LINES)}")
    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    curves = []  # title, name, (minutes, losses)
    for metrics, path, line in zip(args.metrics, args.peer, LINES):
        records, (peer, of_peer) = records_of(metrics), curve_of_peer(path)
        curves.append((f"{TITLES['ours']}, beside {TITLES[peer]}", "ours", curve_of_run(records)))
        curves.append((TITLES[peer], peer, of_peer))
        for title, name, (minutes, losses) in curves[-2:]:
            axes.plot(minutes, np.exp(losses), line, color=COLORS[name], label=title, marker=".", linewidth=2)
    yardstick = next(r["loss_without_context"] for r in records if r["event"] == "evaluation")
    axes.axhline(math.exp(yardstick), color="0.5", linewidth=1, linestyle="-.", label="best without context")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="minutes of training", ylabel="perplexity", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=150)
    print(table(curves, args.marks))


if __name__ == "__main__":
    command_line(main)
