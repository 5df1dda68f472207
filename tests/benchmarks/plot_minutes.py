"""Draws the perplexity of a run against minutes of training, and those of the same model trained with PyTorch:

python tests/benchmarks/plot_minutes.py --metrics an_hour/metrics.jsonl --peer an_hour_run_mlm.json \
    --speed train_mini_8192.json --output minutes.png

--peer is what bench_train.py --quality --peers_alone wrote, of one peer. --speed is what bench_train.py wrote of the
speed of such updates, of that peer and of others that compute the same: these are drawn with the same losses, and take
the peer's own seconds an update times the ratio of their speeds, and are called computed.
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


def curves_of_peers(peer: dict, speed: dict) -> dict[str, tuple]:
    """The peer's losses, against the minutes that each contestant of `speed` but ours takes for so many updates."""
    [trained] = peer["seconds_per_update"]
    updates, losses = peer["evaluation_losses"]["updates"], peer["evaluation_losses"][trained]
    speeds = {name: result["tokens_per_second"]["median"] for name, result in speed["contestants"].items()}
    del speeds["ours"]
    curves = {}
    for name, tokens_per_second in speeds.items():
        seconds = peer["seconds_per_update"][trained]["median"] * speeds[trained] / tokens_per_second
        curves[name] = [update * seconds / 60 for update in updates], losses
    return curves


def table(curves: dict[str, tuple], titles: dict[str, str], marks: list[float]) -> str:
    """Perplexities after so many minutes, in Markdown; in between along a line of the losses."""
    lines = ["| perplexity after | " + " | ".join(f"{mark:g} minutes" for mark in marks) + " |"]
    lines.append("|---" + "|---:" * len(marks) + "|")
    for name, (minutes, losses) in curves.items():
        cells = [
            f"{math.exp(np.interp(mark, minutes, losses)):,.1f}" if mark <= minutes[-1] + 0.5 else "" for mark in marks
        ]
        lines.append(f"| {titles[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Draws perplexity against minutes of training.")
    parser.add_argument("--metrics", required=True, help="metrics.jsonl of the run")
    parser.add_argument("--peer", required=True, help="a .json of bench_train.py --quality --peers_alone, of one peer")
    parser.add_argument("--speed", required=True, help="a .json of bench_train.py of the same updates")
    parser.add_argument(
        "--marks", nargs="+", type=number(float, 0), default=[5, 15, 30, 60], help="minutes, of the table"
    )
    parser.add_argument("--output", required=True, help="the figure to write, .png, .svg or .pdf")
    return parser.parse_args(argv)


def main(argv: list | None = None) -> None:
    import matplotlib.figure

    args = parse_arguments(argv)
    peer, speed = (json.loads(pathlib.Path(path).read_text(encoding="utf-8")) for path in (args.peer, args.speed))
    if len(peer["seconds_per_update"]) != 1:
        raise UserError(f"--peer {args.peer}: of one peer, please")
    records = records_of(args.metrics)
    curves = {"ours": curve_of_run(records), **curves_of_peers(peer, speed)}
    trained = {"ours", *peer["seconds_per_update"]}
    titles = {name: TITLES[name] if name in trained else f"{TITLES[name]} (computed)" for name in curves}

    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, (minutes, losses) in curves.items():
        axes.plot(minutes, np.exp(losses), color=COLORS[name], label=titles[name], marker=".", linewidth=2)
    yardstick = next(r["loss_without_context"] for r in records if r["event"] == "evaluation")
    axes.axhline(math.exp(yardstick), color="0.5", linewidth=1, linestyle="--", label="best without context")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="minutes of training", ylabel="perplexity", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=150)
    print(table(curves, titles, args.marks))


if __name__ == "__main__":
    command_line(main)
