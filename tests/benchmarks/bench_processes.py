"""Times two processes of one thread each against one process of two, and both against Hugging Face's Trainer.

    python tests/benchmarks/bench_processes.py --input_file demo_data --model roberta-en-mini --batch_size 32 \
        --torch_python TORCH_ENV/bin/python --output tests/benchmarks/results/processes_mini.json

Every run is a command as users type it: run_pretrain.py, the same under paddle.distributed.launch, and under torchrun
a script around transformers.Trainer (this one, with --peer). Each does the same number of updates of the same global
batch on the same rows; the runs take turns. What counts is the median time of an update, the first few left out.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from utils import ArgumentParser, UserError, command_line, number

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WARMUP = 5  # updates of each run that do not count


def main(argv: list | None = None) -> None:
    args = parse_arguments(argv)
    if args.peer:
        return run_trainer(args)
    seconds = {name: [] for name in ("ours, 1 process", "ours, 2 processes", "Trainer, 2 processes")}
    for _ in range(args.rounds):
        for name in seconds:
            seconds[name].append(time_run(name, args))
            print(f"{name}: {seconds[name][-1]:.3f} s an update", flush=True)
    tokens = args.batch_size * row_length(args)
    speeds = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name}: {speed:,.0f} tokens/s")
    result = {"arguments": {**vars(args), "torch_python": None}, "seconds": seconds, "tokens_per_second": speeds}
    pathlib.Path(args.output).write_text(json.dumps(result, indent=2) + "\n")


def time_run(name: str, args) -> float:
    """The median seconds of an update in one run of a contestant."""
    processes = int(name.split()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads // processes)}
    with tempfile.TemporaryDirectory() as folder:
        record = os.path.join(folder, "seconds.json")
        if name.startswith("ours"):
            launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", f"{folder}/logs"]
            command = [sys.executable, *(launcher if processes == 2 else []), "run_pretrain.py", "--device", "cpu"]
            command += f"--input_file {args.input_file} --model_name_or_path {args.model} --logging_steps 1".split()
            command += f"--batch_size {args.batch_size // processes} --max_steps {args.updates}".split()
            command += "--recipe roberta".split()  # whole rows from the first update on, as the peer's
            command += [
                "--max_eval_rows",
                "1",
                "--amp",
                str(args.precision == "bfloat16"),
                "--output_dir",
                f"{folder}/o",
            ]
        else:
            command = [
                args.torch_python,
                "-m",
                "torch.distributed.run",
                "--nproc_per_node",
                "2",
                __file__,
                "--peer",
                record,
            ]
            np.save(f"{record}.npy", token_rows(args))
            for flag in ("input_file", "model", "batch_size", "updates", "precision"):
                command += [f"--{flag}", str(getattr(args, flag))]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise UserError(f"{name} failed: {run.stderr[-2000:]}")
        if name.startswith("ours"):
            lines = pathlib.Path(folder, "o", "metrics.jsonl").read_text().splitlines()
            rates = [json.loads(line).get("steps_per_second") for line in lines]
            times = [1 / rate for rate in rates if rate]
        else:
            times = json.loads(pathlib.Path(record).read_text())
    time.sleep(1)
    return statistics.median(times[WARMUP:])


def run_trainer(args) -> None:
    """One process under torchrun: transformers.Trainer on create_data.py's rows; rank 0 writes its updates' seconds."""
    import torch
    import transformers

    layers, width, heads = {"roberta-en-mini": (4, 256, 4), "roberta-en-base": (12, 768, 12)}[args.model]
    folder = pathlib.Path(args.input_file)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
    )
    rows = [{"input_ids": ids} for ids in np.load(f"{args.peer}.npy").tolist()]
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    starts = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *arguments, **more):
            starts.append(time.perf_counter())

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as output:
        settings = transformers.TrainingArguments(
            output,
            use_cpu=True,
            bf16=args.precision == "bfloat16",
            per_device_train_batch_size=args.batch_size // int(os.environ["WORLD_SIZE"]),
            max_steps=args.updates,
            ddp_backend="gloo",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
        )
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        model = transformers.RobertaForMaskedLM(config)
        trainer = transformers.Trainer(model, settings, collator, rows, callbacks=[Clock()])
        trainer.train()
    if os.environ["RANK"] == "0":
        times = [end - start for start, end in pairwise(starts)]
        pathlib.Path(args.peer).write_text(json.dumps(times))


def token_rows(args) -> np.ndarray:
    """The training rows, uint16 [rows, length]."""
    import datasets

    rows = datasets.load_from_disk(args.input_file)["train"].data.column("input_ids")
    return rows.combine_chunks().flatten().to_numpy().reshape(-1, row_length(args))


def row_length(args) -> int:
    card = json.loads(pathlib.Path(args.input_file, "data_card.json").read_text())
    return card["arguments"]["max_seq_length"]


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Times processes against threads, and against Hugging Face's Trainer.")
    add = parser.add_argument
    add("--input_file", required=True, help="directory that create_data.py wrote, of packed rows")
    add("--model", choices=["roberta-en-mini", "roberta-en-base"], default="roberta-en-mini", help="architecture")
    add("--batch_size", type=number(int, 2), default=32, help="rows of an update, over all processes")
    add("--updates", type=number(int, WARMUP + 1), default=40, help="of each run")
    add("--rounds", type=number(int, 1), default=3, help="runs of each contestant")
    add("--threads", type=number(int, 2), default=2, help="cores to use")
    add("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of all contestants")
    add("--torch_python", help="a Python with torch, transformers and accelerate")
    add("--output", default="processes.json", help="file to write")
    add("--peer", metavar="FILE", help="for this script's own use: be the Trainer's process, write FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command_line(main)
