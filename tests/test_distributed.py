"""Several processes, started by paddle.distributed.launch, give what one gives; and survive kills as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import joblib
import numpy as np
import pytest
from conftest import RESUME, ROOT, RUN, around_losses, create, metrics, result, text_of_words, training_arguments
from safetensors.numpy import load_file

import run_pretrain

pytestmark = pytest.mark.slow
OWN_THREADS = os.environ["OMP_NUM_THREADS"]  # of this process, whose rounding depends on them
LINEAR = "roberta.encoder.layers.0.linear1.weight"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(log_dir, processes: int, script: str, *arguments, nodes: int = 1, master: int | None = None, threads="1"):
    """Starts the launcher of one node, whose workers have a thread each; their output goes to log_dir.

    threads: None sets nothing.
    """
    command = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", log_dir]
    command += ["--nproc_per_node", processes // nodes]
    command += ["--nnodes", nodes, "--master", f"127.0.0.1:{master}"] if nodes > 1 else []
    command = [str(part) for part in [*command, script, *arguments]]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    if threads is None:
        del environment["OMP_NUM_THREADS"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def arguments_of(data, output, *more) -> list:
    arguments = training_arguments(data, output, "roberta-en-tiny")
    return [*arguments, *map(str, more)]


@pytest.fixture(scope="module")
def without_dropout(packed_data, tmp_path_factory):
    """A model directory to continue from, whose configuration has no dropout."""
    output = tmp_path_factory.mktemp("start")
    run_pretrain.main(arguments_of(packed_data, output, "--max_steps", "1", "--dropout", "0"))
    config = json.loads((output / "paddle_1/config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0
    return output / "paddle_1"


def test_launched_processes_take_all_cores_unless_they_are_told(packed_data, without_dropout, tmp_path):
    """Importing Paddle sets OMP_NUM_THREADS to 1, in the launcher, too, and its processes inherit that."""
    cores = joblib.cpu_count(only_physical_cores=True)
    if cores == 1:
        pytest.skip("one core: the launcher's setting is that of a run")
    for threads, used in ((None, cores), ("1", 1)):
        command = arguments_of(packed_data, tmp_path / "none", "--max_steps", 0, "--max_eval_rows", 8)
        command += ["--model_name_or_path", str(without_dropout)]
        assert (
            launch(tmp_path / f"logs_{threads}", 1, "run_pretrain.py", *command, threads=threads).wait(timeout=300) == 0
        )
        output = (tmp_path / f"logs_{threads}/workerlog.0").read_text()
        assert f"device: cpu, 1 process(es) of {used} thread(s), Paddle" in output


@pytest.mark.parametrize(("optimizer", "ways"), [("adamw", [(1, 4), (2, 2), (4, 1)]), ("muon", [(1, 4), (2, 2)])])
def test_accumulation_equals_devices(packed_data, without_dropout, tmp_path, optimizer, ways):
    outputs = {}
    for processes, accumulation in ways:
        output = outputs[processes] = tmp_path / f"{processes}x{accumulation}"
        more = ["--gradient_accumulation_steps", accumulation, "--max_steps", 5, "--learning_rate", "1e-4"]
        more += ["--model_name_or_path", without_dropout, "--optimizer", optimizer]
        if processes == 1:
            run_pretrain.main(arguments_of(packed_data, output, *more))
        else:
            command = arguments_of(packed_data, output, *more)
            ranks = launch(tmp_path / "logs", processes, "run_pretrain.py", *command, threads=OWN_THREADS)
            assert ranks.wait(timeout=300) == 0
    weights = {n: load_file(output / "paddle_5/model.safetensors") for n, output in outputs.items()}
    start = load_file(without_dropout / "model.safetensors")
    assert np.abs(weights[1][LINEAR] - start[LINEAR]).max() > 1e-4  # something was learned
    for processes in list(outputs)[1:]:
        for name, expected in weights[1].items():
            assert np.abs(weights[processes][name] - expected).max() <= 1e-6, (processes, name)
        for event, key in ("train", "loss"), ("evaluation", "eval_loss"):
            losses, expected = ([r[key] for r in metrics(outputs[n], event)] for n in (processes, 1))
            np.testing.assert_allclose(losses, expected, atol=1e-5)
            assert len(losses) == (5 if event == "train" else 1)
    for output in outputs.values():  # one rank writes
        assert len((output / "metrics.jsonl").read_text().splitlines()) == 6


def test_accumulation_equals_devices_to_bfloat16s_rounding(packed_data, without_dropout, tmp_path):
    """The micro-batches are the same ones, rounded alike; only their four gradients are added in another order, in
    float32: three roundings of at most 2^-24 each way, 3.6e-7 together (and as little in the norm for clipping)."""
    moments = []
    for processes, accumulation in (1, 4), (2, 2):
        output = tmp_path / f"{processes}x{accumulation}"
        more = ["--gradient_accumulation_steps", accumulation, "--max_steps", 1, "--amp", True]
        command = arguments_of(packed_data, output, *more, "--model_name_or_path", without_dropout)
        if processes == 1:
            run_pretrain.main(command)
        else:
            ranks = launch(tmp_path / "logs", processes, "run_pretrain.py", *command, threads=OWN_THREADS)
            assert ranks.wait(timeout=300) == 0
        moments.append(load_file(output / "paddle_1/training_state/optimizer.safetensors"))
    gradients = [name for name in moments[0] if name.endswith("/moment1") and moments[0][name].ndim == 2]
    assert len(gradients) > 10
    for name in gradients:
        one, other = (moment[name] for moment in moments)
        assert np.linalg.norm(one - other) <= 4e-7 * np.linalg.norm(one), name


def test_normalising_each_micro_batch_alone_would_fail_that_check(packed_data, without_dropout, tmp_path, monkeypatch):
    """What the check above is worth: the mean of the micro-batches' means is not the mean over the masked tokens."""

    def run(name, *more):
        options = ["--max_steps", 5, "--learning_rate", "1e-4", "--model_name_or_path", without_dropout, *more]
        run_pretrain.main(arguments_of(packed_data, tmp_path / name, *options))
        return load_file(tmp_path / name / "paddle_5/model.safetensors")

    four = ("--gradient_accumulation_steps", 4)
    right, one_batch = run("right", *four), run("one", "--batch_size", 32)
    real_update, average = run_pretrain.train_update, []

    def update(run, batches):
        average[:] = [sum(count_masked(batch["labels"]) for batch in batches) / len(batches)]
        return real_update(run, batches)

    def of_this_batch_alone(loss, model, batch):
        return loss * average[0] / count_masked(batch["labels"]) if model.training else loss

    monkeypatch.setattr(run_pretrain, "train_update", update)
    around_losses(monkeypatch, change=of_this_batch_alone)
    wrong = run("wrong", *four)
    distance = {n: max(np.abs(w[k] - one_batch[k]).max() for k in w) for n, w in (("right", right), ("wrong", wrong))}
    assert distance["right"] <= 1e-6 < distance["wrong"]


def count_masked(labels) -> int:
    return (labels != run_pretrain.IGNORE_INDEX).sum().item()


def test_two_launchers_one_worker_killed_end_as_an_undisturbed_run(packed_data, tmp_path):
    """The outer loop of the README: whatever ends a launcher with an error, both are started anew."""
    import psutil

    run = [*RUN, "--batch_size", "32", *RESUME]  # two processes of 32 rows
    undisturbed = tmp_path / "undisturbed"
    command = arguments_of(packed_data, undisturbed, *run)
    assert launch(tmp_path / "logs", 2, "run_pretrain.py", *command).wait(timeout=300) == 0
    output, kills = tmp_path / "ckp", 0
    for _attempt in range(4):
        port, before = free_port(), len(list(output.glob("paddle_*")))
        launchers = [
            launch(
                tmp_path / f"logs{i}",
                2,
                "run_pretrain.py",
                *arguments_of(packed_data, output, *run),
                nodes=2,
                master=port,
            )
            for i in range(2)
        ]
        try:
            while kills < 2 and len(list(output.glob("paddle_*[0-9]"))) <= before:
                assert all(launcher.poll() is None for launcher in launchers)
                time.sleep(0.02)
            if kills < 2:
                victim = psutil.Process(launchers[kills].pid).children()[0]  # of the first launcher, then the second
                victim.send_signal(signal.SIGKILL)
                kills += 1
                assert launchers[kills - 1].wait(timeout=120) != 0
                for launcher in launchers:  # what a scheduler, or the loop's owner, does with the other half
                    launcher.terminate()
            codes = [launcher.wait(timeout=240) for launcher in launchers]
        finally:
            for launcher in launchers:
                launcher.kill()
        if codes == [0, 0]:
            break
    assert kills == 2 and codes == [0, 0]
    assert result(output) == result(undisturbed)


INFINITE_ON_RANK_1 = """
import sys
sys.path.insert(0, {root!r})
import run_pretrain, utils
import numpy as np
bad_here = False
real_update, real_loss = run_pretrain.train_update, run_pretrain.masked_loss

def update(run, batches):
    global bad_here
    bad_here = run.machine.rank == 1 and run.progress.global_step in {steps}
    before = [p.numpy().copy() for p in run.model.parameters()]
    result = real_update(run, batches)
    changed = not all(np.array_equal(b, p.numpy()) for b, p in zip(before, run.model.parameters()))
    print("UPDATE", run.progress.global_step, "changed" if changed else "unchanged", flush=True)
    return result

def loss(model, batch):
    global bad_here
    value, *rest = real_loss(model, batch)
    value, bad_here = (value * float("inf") if bad_here else value), False
    return value, *rest

run_pretrain.train_update, run_pretrain.masked_loss = update, loss
utils.command_line(run_pretrain.main)
"""


@pytest.mark.parametrize("steps", [{2}, {3, 4, 5, 6, 7}], ids=["one", "five in a row"])
def test_an_infinity_on_one_rank_changes_no_ranks_weights(packed_data, tmp_path, steps):
    script = tmp_path / "infinite.py"
    script.write_text(INFINITE_ON_RANK_1.format(root=str(ROOT), steps=steps))
    arguments = arguments_of(packed_data, tmp_path / "ckp", "--gradient_accumulation_steps", 2, "--max_steps", 10)
    process = launch(tmp_path / "logs", 2, script, *arguments, "--save_steps", "3")
    status = process.wait(timeout=300)
    logs = [(tmp_path / f"logs/workerlog.{rank}").read_text() for rank in range(2)]
    for log in logs:
        updates = [line.split()[1:] for line in log.splitlines() if line.startswith("UPDATE")]
        assert {int(step) for step, state in updates if state == "unchanged"} == steps
        assert len(updates) == (10 if status == 0 else 8)
    if len(steps) == 5:
        assert status != 0 and "5 updates in a row, up to step 8" in logs[0]
    else:
        assert status == 0 and [r["skipped_updates"] for r in metrics(tmp_path / "ckp", "train")].count(1) == 1


OTHER_ARGUMENTS_ON_RANK_1 = """
import os, sys
sys.path.insert(0, {root!r})
import run_pretrain, utils
sys.argv += {more!r} if os.environ["PADDLE_TRAINER_ID"] == "1" else []
utils.command_line(run_pretrain.main)
"""


@pytest.mark.parametrize(
    ("both", "other", "message"),
    [
        (["--max_steps", 3], ["--seed", "7"], "arguments: start them with the same command"),
        (["--max_steps", 3], ["--input_file", "OTHER"], "data or tokenizers: share one --input_file, or copy it"),
        (["--max_steps", 0], ["--input_file", "OTHER"], "data or tokenizers: share one --input_file, or copy it"),
        (["--max_steps", 3], ["--model_name_or_path", "roberta-en-mini"], "models or precisions: give all the same"),
    ],
    ids=["arguments", "data", "data of an evaluation", "model"],
)
def test_ranks_that_differ_at_a_first_start_are_all_refused(packed_data, tmp_path, both, other, message):
    (tmp_path / "other.txt").write_text(text_of_words(300, seed=1))
    elsewhere = create(tmp_path / "other.txt", tmp_path / "other") if "OTHER" in other else None
    script = tmp_path / "differ.py"
    more = [str(elsewhere) if word == "OTHER" else word for word in other]
    script.write_text(OTHER_ARGUMENTS_ON_RANK_1.format(root=str(ROOT), more=more))
    arguments = arguments_of(packed_data, tmp_path / "ckp", *both)
    assert launch(tmp_path / "logs", 2, script, *arguments).wait(timeout=300) != 0
    for rank in range(2):
        lines = (tmp_path / f"logs/workerlog.{rank}").read_text().splitlines()
        [error] = [line for line in lines if line.startswith("error: ")]
        assert error.startswith(f"error: the processes have different {message}")
    assert not (tmp_path / "ckp/metrics.jsonl").exists() and not list((tmp_path / "ckp").glob("paddle_*"))


START_ELSEWHERE = """
import argparse, sys
sys.path.insert(0, {root!r})
import run_pretrain, utils
import numpy as np
rank = run_pretrain.dist.get_rank()
real_model, real_update = run_pretrain.build_model, run_pretrain.train_update

def model(args, *rest):
    other = argparse.Namespace(**vars(args) | {{"seed": args.seed + rank}})  # as GPUs of two kinds draw from one seed
    built = real_model(other, *rest)
    print("BUILT", digest(built), flush=True)
    return built

def update(run, batches):
    print("BEFORE", run.progress.global_step, digest(run.model), flush=True)
    result = real_update(run, batches)
    print("AFTER", run.progress.global_step, digest(run.model), flush=True)
    return result

def digest(model):
    import hashlib
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.parameters())).hexdigest()

run_pretrain.build_model, run_pretrain.train_update = model, update
utils.command_line(run_pretrain.main)
"""


def test_ranks_that_start_from_different_weights_train_equal_ones(packed_data, tmp_path):
    script = tmp_path / "elsewhere.py"
    script.write_text(START_ELSEWHERE.format(root=str(ROOT)))
    arguments = arguments_of(packed_data, tmp_path / "ckp", "--max_steps", 3)
    assert launch(tmp_path / "logs", 2, script, *arguments).wait(timeout=300) == 0
    logs = [(tmp_path / f"logs/workerlog.{rank}").read_text().splitlines() for rank in range(2)]
    first, other = ([line for line in log if line.startswith(("BUILT", "BEFORE", "AFTER"))] for log in logs)
    assert len(first) == 7 and first[0] != other[0] and first[1:] == other[1:]
    assert first[0].split()[-1] == first[1].split()[-1]  # the first rank's
    assert len({line.split()[-1] for line in first}) == 4  # and each update changed them


def test_ranks_that_would_evaluate_different_weights_are_refused(packed_data, tmp_path):
    """One loss of both would be that of no model."""
    script = tmp_path / "elsewhere.py"
    script.write_text(START_ELSEWHERE.format(root=str(ROOT)))
    arguments = arguments_of(packed_data, tmp_path / "ckp", "--max_steps", 0)
    assert launch(tmp_path / "logs", 2, script, *arguments).wait(timeout=300) != 0
    for rank in range(2):
        log = (tmp_path / f"logs/workerlog.{rank}").read_text()
        assert "error: the processes have different weights: share one --model_name_or_path, or copy it" in log
        assert "evaluation: loss" not in log


def test_ranks_save_and_end_with_a_launcher_that_ends_without_telling_them(packed_data, tmp_path):
    """As at SIGKILL, and at SIGHUP, when a terminal is closed."""
    import psutil

    output = tmp_path / "ckp"
    arguments = arguments_of(packed_data, output, "--num_train_epochs", 1000)
    launcher = launch(tmp_path / "logs", 2, "run_pretrain.py", *arguments)
    while not (output / "metrics.jsonl").exists() or not metrics(output, "train"):
        assert launcher.poll() is None
        time.sleep(0.05)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    assert len(ranks) == 2
    launcher.send_signal(signal.SIGHUP)
    launcher.wait()
    assert psutil.wait_procs(ranks, timeout=30)[1] == []
    [checkpoint] = output.glob("paddle_*")
    told = f"stopped by a signal after step {checkpoint.name.removeprefix('paddle_')}: add --resume_from_checkpoint"
    assert told in (tmp_path / "logs/workerlog.0").read_text()


FROZEN_ON_RANK_1 = """
import os, signal, sys
sys.path.insert(0, {root!r})
import run_pretrain, utils
real_update = run_pretrain.train_update

def update(run, batches):
    if run.progress.global_step == 2:
        os.environ["PADDLE_PG_TIMEOUT"] = "5000"  # from this update on
    if run.progress.global_step == 3 and run.machine.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real_update(run, batches)

run_pretrain.train_update = update
utils.command_line(run_pretrain.main)
"""


def test_a_rank_whose_others_are_gone_without_a_word_ends_in_time(packed_data, tmp_path):
    """As when another machine dies; Paddle itself would wait for ever."""
    import psutil

    script = tmp_path / "frozen.py"
    script.write_text(FROZEN_ON_RANK_1.format(root=str(ROOT)))
    launcher = launch(tmp_path / "logs", 2, script, *arguments_of(packed_data, tmp_path / "ckp", "--max_steps", 6))
    frozen = []
    while launcher.poll() is None and not frozen:
        time.sleep(0.2)
        ranks = psutil.Process(launcher.pid).children()
        frozen = [rank for rank in ranks if rank.status() == psutil.STATUS_STOPPED]
    [waiting] = [rank for rank in ranks if rank not in frozen]
    assert psutil.wait_procs([waiting], timeout=60)[1] == []
    frozen[0].kill()
    assert launcher.wait(timeout=60) != 0
    log = (tmp_path / "logs/workerlog.0").read_text()
    assert "Timeout (0:00:05)!" in log and "train_update" in log


@pytest.mark.parametrize("status", [0, 2])
def test_nothing_that_is_torn_down_at_the_end_changes_the_status(status, packed_data, tmp_path):
    data = packed_data if status == 0 else "missing"
    argv = ["run_pretrain.py", *arguments_of(data, tmp_path / "ckp", "--max_steps", 0)]
    code = "import atexit, os, runpy, sys; atexit.register(os.abort); sys.argv = sys.argv[1:]; "
    code += "runpy.run_path('run_pretrain.py', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == status, run.stderr
    assert ("evaluation: loss" in run.stdout) if status == 0 else ("--input_file missing" in run.stderr)
