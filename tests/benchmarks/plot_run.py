"""Draws the losses of one run or of several side by side from their metrics.jsonl:

python tests/benchmarks/plot_run.py --metrics ckp/metrics.jsonl other/metrics.jsonl --output curves.png
"""

import os
import sys

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from utils import ArgumentParser, UserError, command_line, draw_curve, read_metrics


def records_of(path: str) -> list[dict]:
    """The records of a run's metrics.jsonl; UserError where it is none."""
    try:
        records = read_metrics(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--metrics {path}: not a metrics.jsonl of run_pretrain.py ({error})") from error
    if not any(record["event"] == "train" for record in records):
        raise UserError(f"--metrics {path}: the run has not reported yet (see --logging_steps)")
    return [record for record in records if record["step"] > 0]  # without what --max_steps 0 adds, an evaluation alone


def draw_comparison(runs: dict[str, list[dict]], path: str):
    """The training losses of several runs, and their evaluations as points of the same colour."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, records in runs.items():
        points = {event: [r for r in records if r["event"] == event] for event in ("train", "evaluation")}
        [line] = axes.plot(
            [record["step"] for record in points["train"]],
            [record["loss"] for record in points["train"]],
            label=f"{name}, training",
            linewidth=0.8,
        )
        axes.plot(
            [record["step"] for record in points["evaluation"]],
            [record["eval_loss"] for record in points["evaluation"]],
            label=f"{name}, evaluation",
            color=line.get_color(),
            marker="o",
            linestyle="",
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="updates", ylabel="loss (nats per masked token)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(argv: list | None = None) -> None:
    parser = ArgumentParser("Draws the losses of training runs.")
    parser.add_argument(
        "--metrics", nargs="+", required=True, help="metrics.jsonl of runs; one is drawn with its yardsticks and rate"
    )
    parser.add_argument("--output", required=True, help="the figure to write, .png, .svg or .pdf")
    args = parser.parse_args(argv)
    runs = {path: records_of(path) for path in args.metrics}
    if len(runs) == 1:
        draw_curve(*runs.values(), args.output)
    else:
        draw_comparison(runs, args.output)
    print(f"written: {args.output}")


if __name__ == "__main__":
    command_line(main)
