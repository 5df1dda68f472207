"""A run that is stopped, killed or damaged, and resumed, ends as if nothing had happened; anything else is refused."""

import errno
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, metrics, training_arguments

import run_pretrain
import utils
from utils import UserError

STEPS, SAVE_STEPS = 40, 7
RUN = f"--max_steps {STEPS} --save_steps {SAVE_STEPS} --logging_steps 3 --batch_size 64 --warmup_steps 5".split()
RESUME = ["--resume_from_checkpoint", "auto"]


class Killed(BaseException):
    """Stands for a kill inside this process."""


def result(output) -> dict:
    """What must be equal: weights and optimizer state, byte for byte, and every loss that was logged."""
    final = max(output.glob("paddle_*"), key=lambda path: int(path.name.split("_")[1]))
    digests = {
        name: hashlib.sha256((final / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "training_state/optimizer.safetensors")
    }
    losses = {
        (r["event"], r["step"]): r.get("loss", r.get("eval_loss"))
        for event in ("train", "evaluation")
        for r in metrics(output, event)
    }
    records = len((output / "metrics.jsonl").read_text().splitlines())
    return {"checkpoint": final.name, **digests, "losses": losses, "records": records}


def stop_in_update(monkeypatch, step: int, action) -> None:
    """Calls action() in the update that follows `step`, once."""
    real = run_pretrain.train_update

    def update(model, optimizer, scaler, batches, this_step, *rest):
        if this_step == step:
            monkeypatch.setattr(run_pretrain, "train_update", real)
            action()
        return real(model, optimizer, scaler, batches, this_step, *rest)

    monkeypatch.setattr(run_pretrain, "train_update", update)


@pytest.fixture(scope="module")
def undisturbed(packed_data, tmp_path_factory) -> dict:
    """The same run without any interruption; it crosses an epoch and has dropout."""
    output = tmp_path_factory.mktemp("undisturbed") / "ckp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run_pretrain.ARCHITECTURES, "tiny-for-tests", (2, 32, 2))
        run_pretrain.main([*training_arguments(packed_data, output), *RUN])
    identity = json.loads((output / "paddle_40/training_state/state.json").read_text())["identity"]
    assert identity["data"]["rows"] // 64 < STEPS and identity["architecture"]["hidden_dropout_prob"] > 0
    return result(output)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(pretrain, monkeypatch, undisturbed, tmp_path, seed):
    """The kill is an exception that no handler of the run sees; the real signal is in the slow test below."""
    random_, output, kills = random.Random(seed), tmp_path / "ckp", 0

    def kill():
        raise Killed

    while not (output / f"paddle_{STEPS}").exists():
        reached = max([int(p.name.split("_")[1]) for p in output.glob("paddle_*")], default=0)
        stop_in_update(monkeypatch, random_.randrange(reached, min(reached + 20, STEPS + 5)), kill)
        try:
            # an earlier model shifts Paddle's own names of the parameters in every attempt
            pretrain(*RUN, *RESUME, output=output)
        except Killed:
            kills += 1
        monkeypatch.undo()
        monkeypatch.setitem(run_pretrain.ARCHITECTURES, "tiny-for-tests", (2, 32, 2))
    assert kills > 0
    assert result(output) == undisturbed


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_exact(pretrain, monkeypatch, undisturbed, tmp_path, signum, capsys):
    def send():
        for _ in range(3 if signum == signal.SIGTERM else 1):  # the launcher repeats SIGTERM
            os.kill(os.getpid(), signum)

    for step, saved in ((4, 6), (13, 14), (36, 38)):  # with the next update's exchange, or the evaluation's before it
        stop_in_update(monkeypatch, step, send)
        output = pretrain(*RUN, *RESUME, output=tmp_path / "ckp")
        assert (output / f"paddle_{saved}").exists() and not (output / f"paddle_{saved + 1}").exists()
        assert "stopped by a signal" in capsys.readouterr().out.splitlines()[-1]
    assert result(pretrain(*RUN, *RESUME, output=output)) == undisturbed


def orphans() -> list:
    """Shared memory of processes that are gone."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    paddles = [name for name in names if name.startswith("paddle_")]
    return [name for name in paddles if not os.path.exists(f"/proc/{name.split('_')[1]}")]


@pytest.mark.parametrize(("at", "num_workers"), [(SAVE_STEPS, 0), (SAVE_STEPS, 2), (STEPS, 0)])
def test_a_signal_ends_an_evaluation_and_the_resumed_run_begins_with_it(
    pretrain, monkeypatch, undisturbed, tmp_path, capsys, at, num_workers
):
    real, evaluated, before = run_pretrain.masked_loss, [], orphans()

    def masked_loss(model, batch):
        if not model.training and (output / f"paddle_{at}").exists():
            evaluated.append(batch)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, batch)

    output = tmp_path / "ckp"
    monkeypatch.setattr(run_pretrain, "masked_loss", masked_loss)
    pretrain(*RUN, *RESUME, "--num_workers", str(num_workers))
    assert not multiprocessing.active_children() and orphans() == before
    assert len(evaluated) == 1 and "stopped by a signal" in capsys.readouterr().out.splitlines()[-1]
    assert max(record["step"] for record in metrics(output, "train")) <= at
    assert at not in [record["step"] for record in metrics(output, "evaluation")]
    monkeypatch.setattr(run_pretrain, "masked_loss", real)
    assert result(pretrain(*RUN, *RESUME)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "3"))))
def test_sigkill_at_a_random_moment_again_and_again(packed_data, tmp_path, seed):
    """KILLS=20 runs as many repetitions."""

    def start(output):
        options = [*training_arguments(packed_data, output, "roberta-en-tiny"), *RUN, *RESUME]
        return subprocess.Popen([sys.executable, "run_pretrain.py", *options], cwd=ROOT, stdout=subprocess.DEVNULL)

    if not (undisturbed := tmp_path.parent / "undisturbed").exists():
        assert start(undisturbed).wait() == 0
    random_, output, kills, status = random.Random(seed), tmp_path / "ckp", 0, None
    while status != 0:
        process, log = start(output), output / "metrics.jsonl"
        written = log.stat().st_size if log.exists() else 0
        while kills < 2 and process.poll() is None and (not log.exists() or log.stat().st_size <= written):
            time.sleep(0.01)
        if kills < 2:
            time.sleep(random_.uniform(0, 1))
            process.kill()
        status = process.wait()
        kills += status == -signal.SIGKILL
    assert kills > 0
    assert result(output) == result(undisturbed)


def test_a_signal_to_another_rank_ends_the_evaluation_here_too(pretrain, monkeypatch, capsys):
    real = run_pretrain.sum_over_ranks
    other = run_pretrain.paddle.to_tensor([0, 0, 0, 1], dtype="float64")  # its loss, correct, masked tokens, stop
    monkeypatch.setattr(run_pretrain, "sum_over_ranks", lambda x: real(x) + other if x.shape == [4] else real(x))
    output = pretrain("--max_steps", "4", "--save_steps", "2")
    assert "stopped by a signal after step 2: " in capsys.readouterr().out.splitlines()[-1]
    assert not metrics(output, "evaluation") and not (output / "paddle_4").exists()


def test_a_signal_in_the_first_evaluation_of_a_run_resumed_by_a_path_names_the_path(
    pretrain, monkeypatch, tmp_path, capsys
):
    output = pretrain("--max_steps", "4", "--save_steps", "2")
    monkeypatch.setattr(run_pretrain, "evaluate", lambda *arguments: None)  # as after a signal
    saved = str(output / "paddle_2")
    pretrain("--max_steps", "4", "--save_steps", "2", "--resume_from_checkpoint", saved, output=tmp_path / "other")
    assert f"--resume_from_checkpoint {saved} continues" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("limit", [100_000, 400_000])  # the model, the optimizer's state
def test_a_full_disk_is_one_line_and_the_checkpoint_before_remains(packed_data, tmp_path, limit):
    """A limit on the size of a file stands in for the disk's."""
    options = [*training_arguments(packed_data, tmp_path / "ckp"), "--max_steps", "4", "--save_steps", "2"]
    code = f"""
import resource, run_pretrain
run_pretrain.ARCHITECTURES["tiny-for-tests"] = (2, 32, 2)
save = run_pretrain.save_checkpoint
def save_on_a_full_disk(path, *rest):
    if path.endswith("paddle_4"):
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    save(path, *rest)
run_pretrain.save_checkpoint = save_on_a_full_disk
run_pretrain.leave(run_pretrain.command_line(run_pretrain.main))
"""
    process = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.splitlines()) == 1 and "File too large" in process.stderr, process.stderr
    assert utils.damage_of(str(tmp_path / "ckp/paddle_2")) is None
    assert sorted(path.name for path in (tmp_path / "ckp").glob("paddle_*")) == ["paddle_2"]


def test_a_full_disk_that_the_log_meets_is_one_line_too(capsys):
    def main():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    assert utils.command_line(main) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'metrics.jsonl'\n"


def test_a_crash_ends_the_process_though_the_loader_has_workers(packed_data, tmp_path):
    options = [*training_arguments(packed_data, tmp_path / "ckp"), "--max_steps", "2", "--num_workers", "2"]
    code = """
import run_pretrain
run_pretrain.ARCHITECTURES["tiny-for-tests"] = (2, 32, 2)
real = run_pretrain.masked_loss
run_pretrain.masked_loss = lambda model, batch: real(model, batch) if model.training else 1 / 0
run_pretrain.leave(run_pretrain.command_line(run_pretrain.main))
"""
    process = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1 and "ZeroDivisionError" in process.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_sigterm_ends_with_status_0_and_without_a_word_on_stderr(packed_data, tmp_path, num_workers):
    """Sent to the loader's workers as well, as Slurm and systemd do."""
    process, workers = training_process(packed_data, tmp_path / "ckp", num_workers)
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    process.terminate()
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped by a signal" in shown.splitlines()[-1]
    assert "Error" not in errors and "Traceback" not in errors, errors


@pytest.mark.slow
def test_the_loaders_workers_die_with_a_killed_trainer_and_leave_nothing(packed_data, tmp_path):
    before = orphans()
    process, workers = training_process(packed_data, tmp_path / "ckp", num_workers=2)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=60)  # which ends when no process holds its pipes any more
    assert orphans() == before


def training_process(data, output, num_workers: int) -> tuple:
    """A run in a process of its own that has made its first update, and the ids of its workers."""
    options = "--num_workers", str(num_workers), "--num_train_epochs", "1000"
    command = [sys.executable, "run_pretrain.py", *training_arguments(data, output, "roberta-en-tiny"), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (output / "metrics.jsonl").exists() or not metrics(output, "train"):
        assert process.poll() is None
        time.sleep(0.05)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [int(child) for child in children]


def test_a_kill_at_every_write_flush_and_rename_of_a_checkpoint_loses_nothing(pretrain, monkeypatch, tmp_path):
    arguments = ["--save_steps", "2", "--max_steps", "4", *RESUME]
    whole = pretrain(*arguments, output=tmp_path / "whole")
    stop_in_update(monkeypatch, 3, lambda: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        pretrain(*arguments, output=tmp_path / "half")
    calls = {"left": None, "made": 0}

    def dying(function):
        def call(*args, **kwargs):
            if calls["left"] is not None:
                calls["made"] += 1
                calls["left"] -= 1
                if calls["left"] < 0:
                    raise Killed
            return function(*args, **kwargs)

        return call

    real_save, real_rmtree = run_pretrain.save_checkpoint, shutil.rmtree

    def save(*args):
        calls["left"] = calls["point"]
        real_save(*args)
        calls["left"] = None

    def rmtree(path, *args, **kwargs):  # who is killed cleans up nothing
        if calls["left"] is None or calls["left"] >= 0:
            real_rmtree(path, *args, **kwargs)

    writers = [(os, "fsync"), (os, "rename"), (os, "makedirs"), (shutil, "copytree"), (shutil, "copy2")]
    writers += [(run_pretrain.safetensors.numpy, "save_file"), (run_pretrain, "write_checksums"), (json, "dump")]
    points = 0
    for point in range(100):
        output = tmp_path / f"{point}"
        shutil.copytree(tmp_path / "half", output)
        calls.update(point=point, left=None, made=0)
        with monkeypatch.context() as patch:
            for module, name in writers:
                patch.setattr(module, name, dying(getattr(module, name)))
            patch.setattr(run_pretrain, "save_checkpoint", save)
            patch.setattr(shutil, "rmtree", rmtree)
            try:
                pretrain(*arguments, output=output)
                break  # so many points there are
            except Killed:
                points += 1
        calls["left"] = None
        named = sorted(path.name for path in output.glob("paddle_*") if "." not in path.name)
        assert [utils.damage_of(str(output / name)) for name in named] == [None] * len(named)
        assert named in (["paddle_2"], ["paddle_2", "paddle_4"])
        assert result(pretrain(*arguments, output=output)) == result(whole)
        assert not list(output.glob("*.being_*"))
    assert points > 15


DAMAGE = {
    "model.safetensors is damaged": lambda path: flip_bit(path / "model.safetensors"),
    "optimizer.safetensors is damaged": lambda path: os.truncate(path / "training_state/optimizer.safetensors", 1000),
    "state.json is missing": lambda path: (path / "training_state/state.json").unlink(),
    "config.json is missing": lambda path: (path / "config.json").unlink(),
    "SHA256SUMS is missing": lambda path: (path / "SHA256SUMS").unlink(),
    "SHA256SUMS is cut off": lambda path: os.truncate(path / "SHA256SUMS", 0),
    "it cannot be read": lambda path: (path / "config.json").unlink() or (path / "config.json").symlink_to("none"),
    "SHA256SUMS is missing or unreadable": lambda path: (path / "SHA256SUMS").write_bytes(b"\xff\n"),
}


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_auto_takes_the_one_before(pretrain, tmp_path, capsys, damage):
    arguments = ["--save_steps", "2", "--max_steps", "4"]
    output = pretrain(*arguments)
    expected = result(output)
    DAMAGE[damage](output / "paddle_4")
    with pytest.raises(UserError, match=damage):
        pretrain(*arguments, "--resume_from_checkpoint", str(output / "paddle_4"))
    capsys.readouterr()
    pretrain(*arguments, *RESUME)
    shown = capsys.readouterr()
    assert "paddle_4" in shown.err and damage in shown.err and "resuming" in shown.out and "paddle_2" in shown.out
    assert result(output) == expected


CHANGES = {
    "learning_rate (was 0.001, is 0.002)": "--learning_rate 2e-3",
    "seed (was 42, is 7)": "--seed 7",
    "global_batch (was 8, is 16)": "--batch_size 16",
    "total_steps (was 4, is 6)": "--max_steps 6",
    "warmup_steps (was 0, is 2)": "--warmup_steps 2",
    "architecture.num_attention_heads (was 2, is 4)": "--model_name_or_path roberta-en-mini",
    "mlm_probability": "--mlm_probability 0.2",
    "architecture.hidden_dropout_prob (was 0.1, is 0.0)": "--dropout 0",
}


def test_changes_that_would_change_the_result_are_refused_and_listed(
    pretrain, packed_data, ragged_data, monkeypatch, tmp_path
):
    output = pretrain("--save_steps", "2", "--max_steps", "4")
    before = result(output)
    monkeypatch.setattr(run_pretrain, "load_model", None)  # before anything large is loaded
    for named, change in CHANGES.items():
        with pytest.raises(UserError) as error:
            pretrain("--save_steps", "2", "--max_steps", "4", *RESUME, *change.split())
        assert named in str(error.value) and "\n" not in str(error.value)
    shutil.copytree(packed_data, tmp_path / "unknown")
    (tmp_path / "unknown/data_card.json").unlink()
    for data in (ragged_data, tmp_path / "unknown"):
        with pytest.raises(UserError, match=r"data\.fingerprint \(was sha256:"):
            pretrain("--save_steps", "2", "--max_steps", "4", *RESUME, data=data)
    assert result(output) == before


def test_another_precision_is_refused_like_any_change(pretrain):
    output = pretrain("--max_steps", "2")
    path = output / "paddle_2/training_state/state.json"
    state = json.loads(path.read_text())
    state["identity"]["amp"] = True  # as a GPU would have it
    path.write_text(json.dumps(state))
    utils.write_checksums(str(output / "paddle_2"))
    with pytest.raises(UserError, match=r"amp \(was True, is False\)"):
        pretrain("--max_steps", "2", *RESUME)


def test_processes_that_find_different_checkpoints_stop(monkeypatch):
    run_pretrain.check_same_step(1000)
    monkeypatch.setattr(run_pretrain.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(run_pretrain, "sum_over_ranks", lambda tensor: tensor + 1000)  # the other has 1000
    run_pretrain.check_same_step(1000)
    with pytest.raises(UserError, match="share one --output_dir"):
        run_pretrain.check_same_step(0)


def test_the_global_batch_may_be_cut_otherwise(pretrain, monkeypatch, tmp_path):
    keys = []
    real = run_pretrain.TokenRows.__getitem__
    monkeypatch.setattr(run_pretrain.TokenRows, "__getitem__", lambda rows, key: keys.append(key) or real(rows, key))
    arguments = ["--save_steps", "2", "--max_steps", "6"]
    pretrain(*arguments, "--batch_size", "16", output=tmp_path / "whole")
    expected = list(keys)
    keys.clear()
    stop_in_update(monkeypatch, 4, lambda: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        pretrain(*arguments, "--batch_size", "16")
    read_before = len([key for key in keys if key[0] == 0])
    assert read_before >= 4 * 16
    keys.clear()
    pretrain(*arguments, *RESUME, "--batch_size", "4", "--gradient_accumulation_steps", "4")
    training = [key for key in keys if key[0] == 0]
    assert training == [key for key in expected if key[0] == 0][4 * 16 :]  # and nothing that was passed is read again


def test_auto_is_a_fresh_start_where_there_is_no_checkpoint_and_nothing_remains_to_do_at_the_end(pretrain, capsys):
    output = pretrain("--max_steps", "2", *RESUME)
    assert "training from scratch" in capsys.readouterr().out
    first = result(output)
    pretrain("--max_steps", "2", *RESUME)
    assert f"done: {output / 'paddle_2'}" in capsys.readouterr().out
    assert result(output) == first


def test_the_newest_checkpoints_are_kept_and_leftovers_of_killed_runs_are_removed(pretrain, tmp_path):
    output = tmp_path / "ckp"
    (output / "paddle_9.being_written").mkdir(parents=True)
    pretrain("--max_steps", "7", "--save_steps", "2", "--save_total_limit", "2", *RESUME)
    assert sorted(path.name for path in output.glob("paddle_*")) == ["paddle_6", "paddle_7"]


def test_rotation_never_deletes_the_only_complete_checkpoint(pretrain):
    arguments = ["--max_steps", "6", "--save_steps", "2"]
    output = pretrain(*arguments)
    for step in (4, 6):
        flip_bit(output / f"paddle_{step}/model.safetensors")
    pretrain(*arguments, *RESUME, "--save_total_limit", "1")  # from paddle_2, beside damaged ones of later steps
    assert [path.name for path in output.glob("paddle_*")] == ["paddle_6"]
    assert utils.damage_of(str(output / "paddle_6")) is None


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(pretrain):
    output = pretrain("--max_steps", "2")
    flip_bit(output / "paddle_2/model.safetensors")
    before = (output / "metrics.jsonl").read_text(), (output / "paddle_2/SHA256SUMS").read_text()
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        pretrain("--max_steps", "2", *RESUME)
    assert ((output / "metrics.jsonl").read_text(), (output / "paddle_2/SHA256SUMS").read_text()) == before


def test_a_checkpoint_from_before_the_first_good_update_resumes(pretrain, monkeypatch, tmp_path):
    from test_pretrain import infinite_loss_at

    arguments = ["--max_steps", "4", "--save_steps", "1"]
    with infinite_loss_at(monkeypatch, {0}):
        expected = result(pretrain(*arguments, output=tmp_path / "whole"))
        stop_in_update(monkeypatch, 1, lambda: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            pretrain(*arguments)
        assert metrics(tmp_path / "ckp", "train")[0]["loss"] is None
        assert result(pretrain(*arguments, *RESUME)) == expected


def test_the_scaler_resumes_where_it_was(pretrain, monkeypatch, tmp_path):
    from test_pretrain import StandInScaler, infinite_loss_at

    monkeypatch.setattr(run_pretrain.paddle.amp, "GradScaler", StandInScaler)
    arguments = ["--max_steps", "6", "--save_steps", "3"]
    with infinite_loss_at(monkeypatch, {1}):
        expected = result(pretrain(*arguments, output=tmp_path / "whole"))
        stop_in_update(monkeypatch, 4, lambda: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            pretrain(*arguments)
    output = pretrain(*arguments, *RESUME)
    assert result(output) == expected
    assert metrics(output, "train")[-1]["loss_scale"] == 2.0**14


def test_a_second_interrupt_exits_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = run_pretrain.StopSignal()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and not codes
        os.kill(os.getpid(), signal.SIGINT)
        assert codes == [130]
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
