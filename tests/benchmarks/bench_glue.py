"""Fine-tunes checkpoints with PaddleNLP's run_glue.py, several seeds each, and sums up their accuracies:

    python tests/benchmarks/bench_glue.py --run_glue PaddleNLP/slm/examples/benchmark/glue/run_glue.py \
        --models pretrained=long/paddle_10000 untrained=untrained_{seed}/paddle_1 --tasks SST-2 RTE \
        --max_steps 1000 234 --learning_rate 3e-4 --seeds 1 2 3 --output glue.json

The script is run as it is, with run_pretrain.py's layers for a CPU in its model (in bfloat16 where that is native).
Weights from initialization alone differ with their seed: `{seed}` in a model's path is replaced by the run's. The runs
that are under way at once have one thread each, so the figures do not depend on the number of processes.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import joblib

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from utils import ArgumentParser, UserError, command_line, number

RUN_WITH_FAST_LAYERS = """
import runpy, sys
import run_pretrain
from paddlenlp.transformers import AutoModelForSequenceClassification

load = AutoModelForSequenceClassification.from_pretrained

def load_with_fast_layers(*arguments, **options):
    model = load(*arguments, **options)
    precision, _ = run_pretrain.choose_precision(run_pretrain.parse_arguments([]), "cpu")
    run_pretrain.use_fast_layers(model, "cpu", precision, is_padded=True)
    return model

AutoModelForSequenceClassification.from_pretrained = load_with_fast_layers
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ACCURACY = re.compile(r"eval loss: \S+, acc: ([\d.]+)")


def parse_arguments(argv: list | None):
    parser, positive = ArgumentParser("Fine-tune checkpoints on GLUE tasks, several seeds each."), number(int, 1)
    add = parser.add_argument
    add("--run_glue", required=True, help="PaddleNLP's script")
    add("--models", nargs="+", required=True, metavar="NAME=DIRECTORY", help="checkpoints; {seed} is replaced")
    add("--tasks", nargs="+", required=True, help="of those whose measure is the accuracy: SST-2, QNLI, RTE")
    add("--max_steps", nargs="+", type=positive, required=True, help="updates, one number for each task")
    add("--batch_size", type=positive, default=32, help="sentences or pairs per update")
    add("--learning_rate", type=number(float, 0), default=1e-4, help="the peak")
    add("--seeds", nargs="+", type=positive, default=[1, 2, 3], help="of the classifier's weights and dropout")
    add("--processes", type=positive, default=joblib.cpu_count(only_physical_cores=True), help="runs under way at once")
    add("--output", required=True, help="results, .json")
    args = parser.parse_args(argv)
    if len(args.max_steps) != len(args.tasks):
        raise UserError(f"--max_steps has {len(args.max_steps)} numbers, --tasks has {len(args.tasks)} names")
    if wrong := [model for model in args.models if "=" not in model]:
        raise UserError(f"--models {wrong[0]}: NAME=DIRECTORY is expected")
    return args


def accuracy(args, model: str, task: str, max_steps: int, seed: int) -> float:
    """The accuracy on the task's validation set, in percent, after the last update."""
    name, _, directory = model.partition("=")
    directory = directory.replace("{seed}", str(seed))
    if not os.path.isdir(directory):
        raise UserError(f"--models {name}: no directory {directory}")
    with tempfile.TemporaryDirectory() as folder:
        flags = {"task_name": task, "model_name_or_path": directory, "output_dir": folder, "seed": seed}
        flags |= {"max_seq_length": 128, "batch_size": args.batch_size, "learning_rate": args.learning_rate}
        flags |= {"max_steps": max_steps, "save_steps": max_steps, "device": "cpu"}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-c", RUN_WITH_FAST_LAYERS, args.run_glue, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": sys.path[0]}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    evaluations = ACCURACY.findall(run.stdout)
    if run.returncode or not evaluations:
        raise UserError(
            f"{name} on {task}, seed {seed}: run_glue.py failed: {(run.stderr or '?').strip().splitlines()[-1]}"
        )
    print(f"{name} on {task}, seed {seed}: {100 * float(evaluations[-1]):.1f}", flush=True)
    return 100 * float(evaluations[-1])


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    results = {}
    with ThreadPoolExecutor(args.processes) as pool:
        for task, max_steps in zip(args.tasks, args.max_steps):
            for model in args.models:
                runs = [pool.submit(accuracy, args, model, task, max_steps, seed) for seed in args.seeds]
                results.setdefault(task, {})[model.partition("=")[0]] = runs
    for task, models in results.items():
        for name, runs in models.items():
            values = [run.result() for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            models[name] = {"accuracies": values, "mean": statistics.mean(values), "standard_deviation": spread}
            print(f"{task}, {name}: {models[name]['mean']:.1f} +- {spread:.1f}")
    about = {"settings": vars(args)}
    pathlib.Path(args.output).write_text(json.dumps({**about, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command_line(main)
