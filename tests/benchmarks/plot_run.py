"""Draws a training run's losses from its metrics.jsonl:

python tests/benchmarks/plot_run.py --metrics ckp/metrics.jsonl --output curve.png
"""

import json
import os
import sys

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from utils import ArgumentParser, UserError, command_line


def read_metrics(path: str) -> dict:
    """The records of each event, "train" and "evaluation", by step; of a step that was done again, the last."""
    records = {"train": {}, "evaluation": {}}
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                records[record["event"]][record["step"]] = record
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--metrics {path}: not a metrics.jsonl of run_pretrain.py ({error})") from error
    if not records["train"]:
        raise UserError(f"--metrics {path}: the run has not reported yet (see --logging_steps)")
    return {event: [by_step[step] for step in sorted(by_step)] for event, by_step in records.items()}


def draw(records: dict, axes) -> None:
    for event, key, style in (
        ("train", "loss", {"label": "training loss", "linewidth": 0.8}),
        ("evaluation", "eval_loss", {"label": "evaluation loss", "marker": "o"}),
    ):
        steps = [record["step"] for record in records[event]]
        axes.plot(steps, [record[key] for record in records[event]], **style)
    if records["evaluation"]:
        last = records["evaluation"][-1]
        for key, label, style in (
            ("unigram_entropy", "entropy of the word frequencies", "--"),
            ("loss_without_context", "the best without the context", ":"),
        ):
            if key in last:
                axes.axhline(last[key], color="gray", linestyle=style, label=f"{label}, {last[key]:.2f}")
    axes.set(xlabel="updates", ylabel="loss (nats per masked token)")
    axes.legend(frameon=False)


def main(argv: list | None = None) -> None:
    parser = ArgumentParser("Draws a training run's losses.")
    parser.add_argument("--metrics", required=True, help="the metrics.jsonl in an --output_dir of run_pretrain.py")
    parser.add_argument("--output", required=True, help="the figure, .png, .svg or .pdf")
    args = parser.parse_args(argv)
    records = read_metrics(args.metrics)

    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(records, axes)
    figure.savefig(args.output, dpi=150)
    print(f"written: {args.output}")


if __name__ == "__main__":
    command_line(main)
