"""Five minutes on a GPU tell whether what was written without one holds there. Run it, and send back its file:

    python tests/benchmarks/check_gpu.py --output check_gpu.json

It trains on create_data.py's demo text: ten updates in each precision (with tokens/s, TFLOP/s and peak memory), a run
that is resumed, accumulation against one batch, one GPU against two; and it compares FlashAttention with plain
attention. Each check ends in a line of verdict: passed, failed, or does not apply, with the reason. On a CPU it takes a
minute, with a small model and in float32 alone.
"""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from utils import ArgumentParser, UserError, command_line, read_weights

ROOT = sys.path[0]
# What makes a GPU compute in float32 as a CPU does, and twice the same:
EXACT = {"NVIDIA_TF32_OVERRIDE": "0", "FLAGS_cudnn_deterministic": "1", "FLAGS_embedding_deterministic": "1"}
FLOAT32 = ["--amp", "False"]
WITHOUT_DROPOUT = [*FLOAT32, "--dropout", "0", "--max_steps", "5"]
SIZES = {"gpu": ("roberta-en-base", 512, 16), "cpu": ("roberta-en-tiny", 128, 8)}  # model, tokens in a row, rows


class DoesNotApply(Exception):
    pass


class Machine:
    """Where the checks run, and their runs of run_pretrain.py, each a process of its own."""

    def __init__(self, device: str, folder: str, environment: dict):
        self.device, self.folder, self.environment = device, folder, environment
        (self.model, length, self.batch_size), self.exact_losses = SIZES[device], {}
        options = f"--dataset_name demo --tokenizer_name train --vocab_size 8192 --max_seq_length {length}"
        self._python("create_data.py", *options.split(), "--output_dir", self.path("data"))

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def train(self, name: str, *arguments: str, batch_size: int = 0, processes: int = 1, exact: bool = True) -> list:
        """Runs into the directory `name`; returns the training records of its metrics.jsonl."""
        options = (
            f"--device {self.device} --model_name_or_path {self.model} --batch_size {batch_size or self.batch_size}"
        )
        options += " --recipe roberta --learning_rate 1e-4 --warmup_steps 2 --logging_steps 1 --max_eval_rows 64"
        places = ["--input_file", self.path("data"), "--output_dir", self.path(name)]
        command = ["run_pretrain.py", *options.split(), *places]
        if processes > 1:
            gpus = ",".join(map(str, range(processes)))
            launcher = ["-m", "paddle.distributed.launch", "--log_dir", self.path(f"{name}_logs"), "--gpus", gpus]
            command = [*launcher, *command]
        self._python(*command, *arguments, exact=exact)
        with open(os.path.join(self.path(name), "metrics.jsonl")) as file:
            return [record for record in map(json.loads, file) if record["event"] == "train"]

    def _python(self, *arguments: str, exact: bool = False) -> None:
        environment = {**os.environ, **(EXACT if exact else {})}
        run = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace"
        )
        lines = run.stderr.strip().splitlines() or run.stdout.strip().splitlines() or ["no output"]
        assert run.returncode == 0, f"{' '.join(arguments[:2])} ends with {run.returncode}: {lines[-1][:300]}"

    def distance(self, name: str, other: str, step: int) -> dict:
        """The largest difference between a weight of two runs."""
        one, two = (read_weights(os.path.join(self.path(run), f"paddle_{step}")) for run in (name, other))
        return {"largest_difference": max(float(np.abs(one[key] - two[key]).max()) for key in one)}


def check_updates(machine: Machine, precision: str, optimizer: str) -> dict:
    """Ten updates: the loss begins where it must, falls, and is float32's; the speed is that of the last five."""
    if precision != "float32":
        if machine.device == "cpu":
            raise DoesNotApply("on a CPU, tests/ compare bfloat16 with float32")
        if precision == "bfloat16" and machine.environment["compute_capability"][0] < 8:
            raise DoesNotApply("bfloat16 needs compute capability 8.0")
    amp = ["--amp", "True", "--amp_dtype", precision] if precision != "float32" else FLOAT32
    options = ["--dropout", "0", "--max_steps", "10", "--optimizer", optimizer]
    records = machine.train(f"{precision}_{optimizer}", *amp, *options, exact=False)
    losses = [record["loss"] for record in records]
    names = ("tokens_per_second", "tflops")
    speed = {name: round(float(np.median([record[name] for record in records[5:]])), 3) for name in names}
    skipped = sum(record["skipped_updates"] for record in records)
    assert skipped <= (2 if precision == "float16" else 0), f"{skipped} updates were skipped"
    finite = [loss for loss in losses if loss is not None]
    assert abs(finite[0] / math.log(8192) - 1) < 0.05, f"the first loss is {finite[0]:.3f}, not {math.log(8192):.3f}"
    assert finite[-1] < finite[0], f"the loss rose from {finite[0]:.3f} to {finite[-1]:.3f}"
    if precision != "float32" and not skipped:
        furthest = max(abs(loss - other) for loss, other in zip(losses, machine.exact_losses[optimizer]))
        assert furthest < 0.05, f"a loss is {furthest:.3f} from float32's"
    machine.exact_losses.setdefault(optimizer, losses)  # float32 comes first
    return {**speed, "losses": losses, "skipped": skipped}


def check_resumed(machine: Machine) -> dict:
    arguments = [*FLOAT32, "--max_steps", "6", "--save_steps", "3"]
    machine.train("whole", *arguments)
    shutil.copytree(os.path.join(machine.path("whole"), "paddle_3"), os.path.join(machine.path("resumed"), "paddle_3"))
    machine.train("resumed", *arguments, "--resume_from_checkpoint", "auto")
    return compared(machine.distance("whole", "resumed", 6), 1e-6)


def check_accumulation(machine: Machine) -> dict:
    machine.train("one_batch", *WITHOUT_DROPOUT)
    quarter = machine.batch_size // 4
    machine.train("accumulated", *WITHOUT_DROPOUT, "--gradient_accumulation_steps", "4", batch_size=quarter)
    return compared(machine.distance("one_batch", "accumulated", 5), 1e-5)


def check_two_gpus(machine: Machine) -> dict:
    if machine.environment["gpus"] < 2:
        raise DoesNotApply("there are not two GPUs; on CPUs, tests/test_distributed.py compares processes")
    machine.train("two_gpus", *WITHOUT_DROPOUT, batch_size=machine.batch_size // 2, processes=2)
    return compared(machine.distance("one_batch", "two_gpus", 5), 1e-5)


def check_flash(machine: Machine) -> dict:
    """Outputs and gradients of one layer, in half precision as auto_cast has it."""
    if machine.device == "cpu" or machine.environment["compute_capability"][0] < 8:
        raise DoesNotApply("FlashAttention needs a GPU of compute capability 8.0")
    from run_pretrain import F, auto_cast, paddle, use_fast_layers

    paddle.seed(0)
    attention = paddle.nn.MultiHeadAttention(768, 12)
    model, args = paddle.nn.Sequential(attention), SimpleNamespace(precision="bfloat16", device="gpu")
    use_fast_layers(model, "gpu", "bfloat16", is_padded=False)
    flash = model[0]
    hidden, weight = paddle.randn([4, 512, 768]), paddle.randn([4, 512, 768])
    real, calls, results = F.scaled_dot_product_attention, [], []
    F.scaled_dot_product_attention = lambda *qkv, **more: calls.append(qkv[0].dtype) or real(*qkv, **more)
    for flash.is_padded in (False, True):  # which takes the plain way
        with auto_cast(args), flash_alone(paddle):
            output = flash(hidden, attn_mask=paddle.zeros([4, 1, 1, 512]))
        (output.astype("float32") * weight).mean().backward()
        gradients = [p.grad for name, p in flash.named_parameters() if name != "k_proj.bias"]  # its gradient is 0
        results.append([tensor.astype("float32").numpy().copy() for tensor in (output, *gradients)])
        flash.clear_gradients()
    F.scaled_dot_product_attention = real
    assert calls == [paddle.bfloat16], f"FlashAttention was called with {calls}"
    distances = [float(np.linalg.norm(one - two) / np.linalg.norm(two)) for one, two in zip(*results)]
    return compared({"largest_difference": max(distances), "relative": True}, 0.03)


def flash_alone(paddle):
    """Within this, Paddle 3.3's attention fails where it cannot take FlashAttention, and takes no other kernel."""
    if not hasattr(paddle.nn, "attention"):  # 2.6.2 chooses by the width of a head alone
        return nullcontext()
    from paddle.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


def compared(distance: dict, limit: float) -> dict:
    assert distance["largest_difference"] <= limit, f"they differ by {distance['largest_difference']:.2e}"
    return {**distance, "limit": limit}


def describe(device: str) -> dict:
    """The environment, as far as Paddle and the system tell."""
    from run_pretrain import paddle

    found = {"device": device, "paddle": paddle.__version__, "python": platform.python_version()}
    found.update(numpy=np.__version__, system=platform.platform(), gpus=0, cuda=str(paddle.version.cuda()))
    if device == "gpu":
        sees_one = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()
        if not sees_one:
            raise UserError(f"Paddle {paddle.__version__} sees no GPU here; --device cpu tries the script itself")
        found.update(gpus=paddle.device.cuda.device_count(), gpu=paddle.device.cuda.get_device_name())
        found.update(compute_capability=paddle.device.cuda.get_device_capability(), cudnn=str(paddle.version.cudnn()))
    return found


def parse_arguments(argv: list | None):
    parser = ArgumentParser("Checks what a GPU computes; see the head of this file.")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="cpu: tries the script itself")
    parser.add_argument("--output", default="check_gpu.json", help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list | None = None) -> int:
    args = parse_arguments(argv)
    checks = {}
    for optimizer in "adamw", "muon":
        for precision in "float32", "bfloat16", "float16":
            checks[f"{precision} updates, {optimizer}"] = (check_updates, precision, optimizer)
    checks["resumed equality"], checks["accumulation against batch"] = (check_resumed,), (check_accumulation,)
    checks["two GPUs against one"], checks["flash against plain attention"] = (check_two_gpus,), (check_flash,)
    report = {"environment": describe(args.device), "verdicts": {}}
    print(json.dumps(report["environment"], indent=2))
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(args.device, folder, report["environment"])
        for name, (check, *more) in checks.items():
            started = time.perf_counter()
            try:
                verdict = {"verdict": "passed", **check(machine, *more)}
            except Exception as error:  # one check's failure must not hide the others' results
                verdict = {"verdict": "does not apply" if isinstance(error, DoesNotApply) else "failed"}
                verdict["reason"] = (str(error) or repr(error))[:500]
            report["verdicts"][name] = {**verdict, "seconds": round(time.perf_counter() - started, 1)}
            detail = verdict.get("reason") or ", ".join(f"{k} {v}" for k, v in verdict.items() if isinstance(v, float))
            print(f"{name}: {verdict['verdict']} ({detail})", flush=True)
            with open(args.output, "w") as file:
                json.dump(report, file, indent=2)
    return any(verdict["verdict"] == "failed" for verdict in report["verdicts"].values())


if __name__ == "__main__":
    command_line(main)
