"""A run that is stopped, killed or damaged, and resumed, ends as if nothing had happened; anything else is refused."""

import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
from conftest import (
    RESUME,
    ROOT,
    RUN,
    SAVE_STEPS,
    STEPS,
    TINY,
    TWO_THEN_FOUR,
    Killed,
    around_losses,
    around_updates,
    create,
    infinite_losses,
    kill,
    kill_in_update,
    metrics,
    result,
    run_script,
    stop_in_update,
    training_arguments,
)
from safetensors.numpy import load_file, save_file

import run_pretrain
import utils
from utils import UserError


@pytest.fixture(scope="module")
def undisturbed(packed_data, tmp_path_factory) -> dict:
    """The same run without any interruption; it crosses an epoch and has dropout."""
    output = tmp_path_factory.mktemp("undisturbed") / "ckp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run_pretrain.ARCHITECTURES, TINY, (2, 32, 2))
        run_pretrain.main([*training_arguments(packed_data, output), *RUN])
    identity = json.loads((output / f"paddle_{STEPS}/training_state/state.json").read_text())["identity"]
    rows = datasets.load_from_disk(str(packed_data))["train"].num_rows
    assert rows // 64 < STEPS and identity["architecture.hidden_dropout_prob"] > 0
    return result(output)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(pretrain, monkeypatch, undisturbed, tmp_path, seed):
    """The kill is an exception that no handler of the run sees; the real signal is in the slow test below."""
    random_, output, kills = random.Random(seed), tmp_path / "ckp", 0
    while not (output / f"paddle_{STEPS}").exists():
        reached = max([int(p.name.split("_")[1]) for p in output.glob("paddle_*")], default=0)
        stop_in_update(monkeypatch, random_.randrange(reached, min(reached + 20, STEPS + 5)), kill)
        try:
            # an earlier model shifts Paddle's own names of the parameters in every attempt
            pretrain(*RUN, *RESUME, output=output)
        except Killed:
            kills += 1
    assert kills > 0
    assert result(output) == undisturbed


def test_in_mixed_precision_a_killed_run_ends_as_an_undisturbed_one_too(pretrain, monkeypatch, tmp_path):
    """In bfloat16 where this processor has it."""
    mixed = [*RUN, "--amp", "True"]
    expected = result(pretrain(*mixed, output=tmp_path / "whole"))
    for step in (3, 17, 29):
        kill_in_update(pretrain, monkeypatch, step, *mixed, *RESUME)
    assert result(pretrain(*mixed, *RESUME)) == expected


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_exact(pretrain, monkeypatch, undisturbed, tmp_path, signum, capsys):
    def send():
        for _ in range(3 if signum == signal.SIGTERM else 1):  # the launcher repeats SIGTERM
            os.kill(os.getpid(), signum)

    for step, saved in ((4, 5), (13, 14), (36, 37)):  # with this update; the second falls together with a regular one
        stop_in_update(monkeypatch, step, send)
        output = pretrain(*RUN, *RESUME, output=tmp_path / "ckp")
        assert (output / f"paddle_{saved}").exists() and not (output / f"paddle_{saved + 1}").exists()
        assert "stopped by a signal" in capsys.readouterr().out.splitlines()[-1]
    assert result(pretrain(*RUN, *RESUME, output=output)) == undisturbed


def test_a_signal_in_the_midst_of_an_update_ends_the_run_with_that_update(pretrain, monkeypatch):
    passes = []

    def send(model, batch):
        passes.append(batch)
        if len(passes) == 3:  # the first micro-batch of the second update
            os.kill(os.getpid(), signal.SIGTERM)

    around_losses(monkeypatch, before=send)
    output = pretrain("--max_steps", "9", "--gradient_accumulation_steps", "2")
    assert [path.name for path in output.glob("paddle_*")] == ["paddle_2"] and len(passes) == 4


def test_a_signal_during_an_evaluation_alone_is_an_error(pretrain, monkeypatch, tmp_path):
    """`evaluate && next` must not go on, as if there were a result."""
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    around_losses(monkeypatch, before=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(UserError, match="stopped by a signal before the evaluation was complete"):
        pretrain("--max_steps", "0", "--model_name_or_path", str(checkpoint), output=tmp_path / "evaluation")


@pytest.mark.parametrize("at", [SAVE_STEPS, STEPS])
def test_a_signal_ends_an_evaluation_and_the_resumed_run_begins_with_it(
    pretrain, monkeypatch, undisturbed, tmp_path, capsys, at
):
    evaluated, output = [], tmp_path / "ckp"

    def stop_in_evaluation(model, batch):
        if not model.training and (output / f"paddle_{at}").exists():
            evaluated.append(batch)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        around_losses(patch, before=stop_in_evaluation)
        pretrain(*RUN, *RESUME)
    assert len(evaluated) == 1 and "stopped by a signal" in capsys.readouterr().out.splitlines()[-1]
    assert max(record["step"] for record in metrics(output, "train")) <= at
    assert at not in [record["step"] for record in metrics(output, "evaluation")]
    assert result(pretrain(*RUN, *RESUME)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "2"))))
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
            time.sleep(random_.uniform(0, 20 / metrics(undisturbed, "train")[-1]["steps_per_second"]))
            process.kill()
        status = process.wait()
        kills += status == -signal.SIGKILL
    assert kills > 0
    assert result(output) == result(undisturbed)


def test_a_signal_to_another_rank_ends_the_evaluation_here_too(pretrain, monkeypatch, capsys):
    real = run_pretrain.sum_over_ranks
    other = run_pretrain.paddle.to_tensor([0, 0, 0, 1], dtype="float64")  # its loss, correct, masked tokens, stop

    def sum_over_two_ranks(x):
        is_evaluations = x.shape == other.shape and x.dtype == other.dtype
        return real(x) + other if is_evaluations else real(x)

    monkeypatch.setattr(run_pretrain, "sum_over_ranks", sum_over_two_ranks)
    output = pretrain("--max_steps", "4", "--save_steps", "2")
    assert "stopped by a signal after step 2: " in capsys.readouterr().out.splitlines()[-1]
    assert not metrics(output, "evaluation") and not (output / "paddle_4").exists()


def test_a_signal_to_another_rank_ends_training_here_with_the_same_update(pretrain, monkeypatch, capsys):
    real, sums = run_pretrain.sum_over_ranks, []

    def sum_over_two_ranks(x):
        if x.shape != [2]:  # no update's loss and number of ranks that stop
            return real(x)
        sums.append(x)
        return real(x) + run_pretrain.paddle.to_tensor([0.0, float(len(sums) == 3)])

    monkeypatch.setattr(run_pretrain, "sum_over_ranks", sum_over_two_ranks)
    output = pretrain("--max_steps", "9")
    assert [path.name for path in output.glob("paddle_*")] == ["paddle_3"]
    assert "stopped by a signal after step 3: " in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("limit", [100_000, 400_000])  # the model, the optimizer's state
def test_a_full_disk_is_one_line_and_the_checkpoint_before_remains(packed_data, tmp_path, limit):
    """A limit on the size of a file stands in for the disk's."""
    options = [*training_arguments(packed_data, tmp_path / "ckp"), "--max_steps", "4", "--save_steps", "2"]
    code = f"""
import resource, run_pretrain, utils
run_pretrain.ARCHITECTURES["{TINY}"] = (2, 32, 2)
save = run_pretrain.save_checkpoint
def save_on_a_full_disk(run):
    if run.progress.global_step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    save(run)
run_pretrain.save_checkpoint = save_on_a_full_disk
utils.command_line(run_pretrain.main)
"""
    process = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2, process.stderr
    [error] = process.stderr.splitlines()
    assert error.startswith(f"error: cannot write {tmp_path}/ckp/paddle_4 (") and "File too large" in error
    assert error.endswith(f"see to the disk; --resume_from_checkpoint auto goes on from {tmp_path}/ckp/paddle_2")
    utils.check_checksums(str(tmp_path / "ckp/paddle_2"))
    assert sorted(path.name for path in (tmp_path / "ckp").glob("paddle_*")) == ["paddle_2"]


def test_an_error_of_paddles_device_is_one_line(capsys, monkeypatch):
    def main():
        raise OSError("(External) CUDA error(35), driver version is insufficient")

    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="2"):
        utils.command_line(main)
    assert capsys.readouterr().err == "error: (External) CUDA error(35), driver version is insufficient\n"


def test_a_full_disk_that_the_log_meets_is_one_line_too(capsys, monkeypatch):
    def main():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="2"):
        utils.command_line(main)
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'metrics.jsonl'\n"


def test_a_crash_is_a_traceback_and_ends_the_process(packed_data, tmp_path):
    options = [*training_arguments(packed_data, tmp_path / "ckp"), "--max_steps", "20", "--save_steps", "2"]
    code = f"""
import run_pretrain, utils
run_pretrain.ARCHITECTURES["{TINY}"] = (2, 32, 2)
real = run_pretrain.masked_loss
run_pretrain.masked_loss = lambda model, batch: real(model, batch) if model.training else 1 / 0
utils.command_line(run_pretrain.main)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1 and "ZeroDivisionError" in process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_second_run_in_the_directory_is_refused_and_sigterm_ends_the_first_without_a_word(packed_data, tmp_path):
    output = tmp_path / "ckp"
    options = [*training_arguments(packed_data, output, "roberta-en-tiny"), "--num_train_epochs", "1000", *RESUME]
    command = [sys.executable, "run_pretrain.py", *options]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (output / "metrics.jsonl").exists() or not metrics(output, "train"):
        assert first.poll() is None
        time.sleep(0.05)
    second = run_script("run_pretrain.py", *options, timeout=120)
    [error] = [line for line in second.stderr.splitlines() if "rror" in line]
    assert error == f"error: {output} is in use, or no directory: wait, or choose another"
    assert second.returncode == 2
    first.terminate()
    shown, errors = first.communicate(timeout=60)
    assert first.returncode == 0 and "stopped by a signal" in shown.splitlines()[-1]
    assert "Error" not in errors and "Traceback" not in errors, errors
    steps = [record["step"] for record in metrics(output, "train")]
    assert steps == list(range(1, len(steps) + 1))  # the second run wrote nothing
    utils.check_checksums(str(output / f"paddle_{steps[-1]}"))


@pytest.mark.slow
def test_a_kill_at_every_write_flush_and_rename_of_a_checkpoint_loses_nothing(pretrain, monkeypatch, tmp_path):
    arguments = ["--save_steps", "2", "--max_steps", "4", *RESUME]
    whole = pretrain(*arguments, output=tmp_path / "whole")
    kill_in_update(pretrain, monkeypatch, 3, *arguments, output=tmp_path / "half")
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

    def save(run):
        calls["left"] = calls["point"]
        real_save(run)
        calls["left"] = None

    def rmtree(path, *args, **kwargs):  # who is killed cleans up nothing
        if calls["left"] is None or calls["left"] >= 0:
            real_rmtree(path, *args, **kwargs)

    writers = [(os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "makedirs"), (shutil, "copytree"), (shutil, "copy2")]
    writers += [(run_pretrain, "save_file"), (utils, "write_checksums"), (json, "dumps")]
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
        for name in named:
            utils.check_checksums(str(output / name))
        assert named in (["paddle_2"], ["paddle_2", "paddle_4"])
        assert result(pretrain(*arguments, output=output)) == result(whole)
        assert not list(output.glob("*.being_*/new"))
    assert points > 15


DAMAGE = {
    "model.safetensors is damaged": lambda path: flip_bit(path / "model.safetensors"),
    "training_state/optimizer.safetensors is damaged": lambda path: os.truncate(
        path / "training_state/optimizer.safetensors", 1000
    ),
    "No such file or directory: .*/state.json": lambda path: (path / "training_state/state.json").unlink(),
    "No such file or directory: .*/SHA256SUMS": lambda path: (path / "SHA256SUMS").unlink(),
    "SHA256SUMS is empty": lambda path: os.truncate(path / "SHA256SUMS", 0),
    "damaged .not enough values": lambda path: os.truncate(path / "SHA256SUMS", 50),
    "paddle_4: no checkpoint, or damaged": lambda path: (
        (path / "config.json").unlink() or (path / "config.json").symlink_to("none")
    ),
    "'utf-8' codec": lambda path: (path / "SHA256SUMS").write_bytes(b"\xff\n"),
}


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_directory_is_flushed_before_it_takes_its_name(monkeypatch, tmp_path):
    calls, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("flush") or fsync(descriptor))
    monkeypatch.setattr(os, "rename", lambda *names: calls.append("rename") or rename(*names))
    with utils.atomic_directory(str(tmp_path / "new")) as folder:
        for name in ("one", "two"):
            with open(os.path.join(folder, name), "w") as file:
                file.write(name)
    assert calls == ["flush", "flush", "flush", "rename", "flush"]  # the files, their directory; then its parent


def test_a_directory_that_cannot_be_flushed_is_no_reason_to_end(monkeypatch, tmp_path):
    """As on shared folders of virtual machines; a file that cannot be is one."""
    real, refused = os.fsync, {"kind": stat.S_ISDIR}

    def fsync(descriptor):
        if refused["kind"](os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    def write(name):
        with utils.atomic_directory(str(tmp_path / name)) as folder, open(f"{folder}/file", "w") as file:
            file.write("whole")

    monkeypatch.setattr(os, "fsync", fsync)
    write("new")
    refused["kind"] = stat.S_ISREG
    with pytest.raises(OSError, match="Invalid argument"):
        write("other")
    assert os.listdir(tmp_path) == ["new"] and (tmp_path / "new/file").read_text() == "whole"


def test_a_directory_that_cannot_be_renamed_is_told_before_the_work(monkeypatch, tmp_path):
    """As one that is part of a container's image."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/old").write_text("old")
    real = os.rename

    def rename(source, target):
        if source == str(tmp_path / "data"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    refused = pytest.raises(UserError, match=r"data cannot be replaced \(.*cross-device.*\): choose another")
    with refused, utils.atomic_directory(str(tmp_path / "data")):
        pytest.fail("the work begins")
    assert os.listdir(tmp_path) == ["data"] and (tmp_path / "data/old").read_text() == "old"


def test_a_directory_that_a_lock_keeps_for_a_while_goes_behind_it(monkeypatch, tmp_path):
    """NFS keeps a file that is open."""
    real = shutil.rmtree

    def rmtree(path, **more):
        real(path, **more)
        if path == str(tmp_path / "new.being_written"):
            os.mkdir(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with utils.atomic_directory(str(tmp_path / "new")):
        pass
    assert os.listdir(tmp_path) == ["new"]


def fail_to_lock(monkeypatch, number: int) -> None:
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_the_file_system_knows_no_locks_a_directory_appears_all_the_same(monkeypatch, tmp_path, number):
    fail_to_lock(monkeypatch, number)
    with utils.atomic_directory(str(tmp_path / "new")) as folder, open(f"{folder}/file", "w") as file:
        file.write("whole")
    assert os.listdir(tmp_path) == ["new"] and (tmp_path / "new/file").read_text() == "whole"
    holders = [utils.lock(str(tmp_path / "ckp")) for _ in range(2)]  # no mark that a killed process would leave
    assert len(holders) == 2


def test_where_a_lock_fails_otherwise_nothing_is_written(monkeypatch, tmp_path):
    fail_to_lock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), utils.atomic_directory(str(tmp_path / "new")):
        pytest.fail("it goes on")
    assert not (tmp_path / "new").exists()


def test_every_flag_says_whether_it_may_change_and_one_that_says_nothing_may_not():
    """A new flag changes the result until it says that it may change; then it belongs out of here."""
    changes = set(
        "mlm_probability eval_mlm_probability final_mlm_probability whole_word_masking initialization stages optimizer "
        "learning_rate lr_scheduler warmup_steps weight_decay adam_epsilon max_grad_norm seed scale_loss".split()
    )
    flags, may_change = set(vars(run_pretrain.parse_arguments([]))), run_pretrain.build_parser().may_change()
    assert flags == changes | may_change and not changes & may_change


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_auto_takes_the_one_before(pretrain, tmp_path, capsys, damage):
    output = pretrain(*TWO_THEN_FOUR)
    expected = result(output)
    DAMAGE[damage](output / "paddle_4")
    with pytest.raises(UserError, match=damage):
        pretrain(*TWO_THEN_FOUR, "--resume_from_checkpoint", str(output / "paddle_4"))
    capsys.readouterr()
    pretrain(*TWO_THEN_FOUR, *RESUME)
    warned, _, continued = capsys.readouterr().out.partition(f"continuing from {output / 'paddle_2'}")
    assert f"warning: cannot resume from {output / 'paddle_4'}" in warned and re.search(damage, warned) and continued
    assert result(output) == expected


CHANGES = {
    "--learning_rate (was 0.001, is 0.002)": "--learning_rate 2e-3",
    "--lr_scheduler (was linear, is cosine)": "--lr_scheduler cosine",
    "--seed (was 42, is 7)": "--seed 7",
    "the global batch (was 8 rows, is 16: --batch_size x ": "--batch_size 16",
    "the number of updates (was 4, is 6: --max_steps 4 without --num_train_epochs gives the former)": "--max_steps 6",
    "--warmup_steps (was 0.06, is 2.0)": "--warmup_steps 2",
    "--weight_decay (was 0.01, is 0.1)": "--weight_decay 0.1",
    "--optimizer (was adamw, is muon)": "--optimizer muon",
    "--max_grad_norm (was 1.0, is 2.0)": "--max_grad_norm 2",
    "the model's num_attention_heads (was 2, is 4)": "--model_name_or_path roberta-en-mini",
    "the model's hidden_dropout_prob (was 0.1, is 0.0)": "--dropout 0",
    "--mlm_probability (was 0.15, is 0.2)": "--mlm_probability 0.2",
    "--whole_word_masking (was False, is True)": "--whole_word_masking True",
}


def test_changes_that_would_change_the_result_are_refused_and_listed(pretrain, packed_data, ragged_data, monkeypatch):
    output = pretrain(*TWO_THEN_FOUR)
    before = result(output)
    monkeypatch.setattr(run_pretrain, "load_model", None)  # before anything large is loaded
    for named, change in CHANGES.items():
        with pytest.raises(UserError) as error:
            pretrain(*TWO_THEN_FOUR, *RESUME, *change.split())
        assert named in str(error.value) and "\\n" not in str(error.value)
    rows = len(datasets.load_from_disk(str(packed_data))["train"])
    both = ["--input_file", str(packed_data), str(packed_data)]
    for more, change in ([], {"data": ragged_data}), (both, {}):
        with pytest.raises(
            UserError, match=rf"the data of --input_file \(was {rows:,} rows of {packed_data}, .*; is [\d,]+ rows of "
        ):
            pretrain(*TWO_THEN_FOUR, *RESUME, *more, **change)
    assert result(output) == before


def test_another_recipe_is_refused_with_the_flag_that_gives_the_former(pretrain):
    pretrain("--max_steps", "2")
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "2", "--recipe", "growing_rows", *RESUME)
    former = re.search(r"the recipe \((--recipe \w+) gives the former\)", str(error.value))[1]
    assert former == "--recipe roberta" and "--stages (was none, is 8:0.2:600,32:0.3:900)" in str(error.value)
    pretrain("--max_steps", "2", *former.split(), *RESUME)


def test_a_flag_that_nobody_listed_may_not_change(pretrain, monkeypatch):
    """A checkpoint from before there was the flag counts as one with its default."""
    output, parse, given = pretrain("--max_steps", "2"), run_pretrain.parse_arguments, 0.1

    def with_a_new_flag(argv):
        args = parse(argv)
        args.label_smoothing = given if argv else 0.0
        return args

    monkeypatch.setattr(run_pretrain, "parse_arguments", with_a_new_flag)
    with pytest.raises(UserError, match=r"label_smoothing \(was 0\.0, is 0\.1\)"):
        pretrain("--max_steps", "2", *RESUME)
    given = 0.0
    pretrain("--max_steps", "2", *RESUME)
    arguments = json.loads((output / "paddle_2/training_state/state.json").read_text())["arguments"]
    assert run_pretrain.build_parser().may_change() <= set(arguments)


def test_swapped_rows_are_refused_and_the_same_rows_elsewhere_are_not(pretrain, packed_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(packed_data, data)
    output = pretrain(*TWO_THEN_FOUR)
    shutil.rmtree(output / "paddle_4")
    expected = metrics(output, "train")[-1]["loss"]
    pretrain(*TWO_THEN_FOUR, *RESUME, data=data)
    assert metrics(output, "train")[-1]["loss"] == expected
    rows, path = datasets.load_from_disk(str(data))["train"], data / "train/data-00000-of-00001.arrow"
    first, second = (np.array(rows[i]["input_ids"], dtype=np.uint16).tobytes() for i in range(2))
    content = path.read_bytes()
    assert content.count(first) == content.count(second) == 1 and first != second
    content = content.replace(first, b"?" * 64).replace(second, first).replace(b"?" * 64, second)
    (tmp_path / "swapped").write_bytes(content)
    os.replace(tmp_path / "swapped", path)  # the other stays for who has it open
    with pytest.raises(UserError, match=r"is not as create_data\.py wrote it"):
        pretrain(*TWO_THEN_FOUR, *RESUME, data=data)
    (data / "data_card.json").unlink()  # nothing to compare with but the checkpoint
    with pytest.raises(UserError, match=r"the data of --input_file \(was .* digest [0-9a-f]{8}; is .* digest"):
        pretrain(*TWO_THEN_FOUR, *RESUME, data=data)


def change_state(checkpoint, change) -> None:
    """Has change(state) edit state.json, and seals the checkpoint again."""
    path = checkpoint / "training_state/state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    utils.write_checksums(str(checkpoint))


def test_the_cache_that_a_look_at_the_data_leaves_changes_nothing(pretrain, packed_data, tmp_path):
    """map() and filter() of `datasets` write beside the files that they read."""
    data = tmp_path / "data"
    shutil.copytree(packed_data, data)
    pretrain("--max_steps", "4", "--save_steps", "2", data=data)
    shutil.rmtree(tmp_path / "ckp/paddle_4")
    datasets.load_from_disk(str(data))["train"].filter(lambda row: row["input_ids"][1] % 2 == 0)
    assert list(data.glob("train/cache-*.arrow"))
    pretrain("--max_steps", "4", "--save_steps", "2", *RESUME, data=data)


def test_another_precision_is_refused_like_any_change(pretrain):
    output = pretrain("--max_steps", "2")
    change_state(output / "paddle_2", lambda state: state["identity"].update(precision="bfloat16"))
    with pytest.raises(UserError, match=r"the precision \(was bfloat16, is float32: --amp"):
        pretrain("--max_steps", "2", *RESUME)


def test_a_checkpoint_of_the_first_format_is_refused_and_its_weights_can_be_continued(pretrain, tmp_path, capsys):
    output = pretrain("--max_steps", "2")

    def first_format(state):
        identity = {"data": {"rows": 500}, "global_batch": 8, "total_steps": 2, "amp": False, "architecture": {}}
        old = {"step": 2, "skipped_in_a_row": 0, "window": None, "identity": identity, "scaler": {}, "arguments": {}}
        state.clear()
        state.update(old)

    change_state(output / "paddle_2", first_format)
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "2", *RESUME)
    assert "of another version" in str(error.value) and "\\n" not in str(error.value)
    assert f"--model_name_or_path {output / 'paddle_2'} --output_dir {output}_2 --resume" in str(error.value)
    options = ["--max_steps", "1", "--learning_rate", "0", "--model_name_or_path", str(output / "paddle_2")]
    continued = pretrain(*options, output=tmp_path / "continued")
    assert f"continuing from {output / 'paddle_2'}" in capsys.readouterr().out
    saved = [(path / "model.safetensors").read_bytes() for path in (output / "paddle_2", continued / "paddle_1")]
    assert saved[0] == saved[1]


def test_a_checkpoint_without_all_of_the_optimizers_tensors_is_refused(pretrain):
    output = pretrain("--max_steps", "2")
    path = output / "paddle_2/training_state/optimizer.safetensors"
    tensors = load_file(path)
    assert tensors.pop("roberta.encoder.layers.1.linear1.weight/moment2").any()
    save_file(tensors, path)
    utils.write_checksums(str(output / "paddle_2"))
    with pytest.raises(UserError, match="lacks optimizer tensors"):
        pretrain("--max_steps", "2", *RESUME)


OPTIMIZERS = {
    "Momentum": (lambda p: run_pretrain.paddle.optimizer.Momentum(1e-3, 0.9, parameters=p), {"velocity"}),
    "Lamb": (
        lambda p: run_pretrain.paddle.optimizer.Lamb(1e-3, parameters=p),
        {"moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"},
    ),
    "SGD": (lambda p: run_pretrain.paddle.optimizer.SGD(1e-3, parameters=p), set()),
}


def use_optimizer(monkeypatch, build) -> None:
    """Has build(parameters) stand in build_optimizer()."""
    scaler = run_pretrain.paddle.amp.GradScaler(enable=False)
    monkeypatch.setattr(run_pretrain, "build_optimizer", lambda model, *_: (build(model.parameters()), scaler))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimizer_keeps_its_state(pretrain, monkeypatch, tmp_path, name):
    build, kinds = OPTIMIZERS[name]
    use_optimizer(monkeypatch, build)
    arguments = ["--max_steps", "5", "--save_steps", "2"]
    expected = result(pretrain(*arguments, output=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        kill_in_update(pretrain, patch, 3, *arguments)
    state = load_file(tmp_path / "ckp/paddle_2/training_state/optimizer.safetensors")
    assert {key.rsplit("/")[1] for key in state} == kinds
    assert len(state) == len(kinds) * len({key.rsplit("/")[0] for key in state})
    assert all(array.any() for array in state.values() if array.size > 32)
    assert result(pretrain(*arguments, *RESUME)) == expected


def test_the_state_of_an_optimizer_is_not_given_to_another_one(pretrain, monkeypatch):
    pretrain("--max_steps", "2")
    for name, (build, _) in OPTIMIZERS.items():
        with monkeypatch.context() as patch:
            use_optimizer(patch, build)
            with pytest.raises(UserError, match=rf"AdamW wrote its state, .* makes {name}: .* --model_name_or_path "):
                pretrain("--max_steps", "2", *RESUME)


def test_an_optimizer_whose_state_has_no_name_fails_by_name_when_it_is_saved(pretrain, monkeypatch, tmp_path):
    class Averaging(run_pretrain.paddle.optimizer.AdamW):
        def state_dict(self):
            return super().state_dict() | {"average_of_all": run_pretrain.paddle.zeros([2])}

    use_optimizer(monkeypatch, lambda parameters: Averaging(1e-3, parameters=parameters))
    with pytest.raises(UserError, match=r"keeps average_of_all, of no parameter: have optimizer_arrays\(\) say how"):
        pretrain("--max_steps", "2")
    assert not list((tmp_path / "ckp").glob("paddle_*"))


@pytest.mark.parametrize(("saved_at", "frozen"), [(2, "embeddings"), (3, "embeddings"), (3, "layers.0.")])
def test_weights_that_are_frozen_at_first_resume_where_they_thaw_and_before(
    pretrain, monkeypatch, tmp_path, saved_at, frozen
):
    """The optimizer has no state of them until the update in which they first have a gradient, the fourth."""

    def freeze_until_the_fourth_update(run):
        for name, parameter in run.model.named_parameters():
            if frozen in name:
                parameter.stop_gradient = run.progress.global_step < 3

    optimizer = "adamw" if frozen == "embeddings" else "muon"
    arguments = ["--max_steps", "6", "--save_steps", str(saved_at), "--dropout", "0", "--optimizer", optimizer]
    around_updates(monkeypatch, before=freeze_until_the_fourth_update)
    whole = pretrain(*arguments, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_in_update(pretrain, patch, 5 if saved_at == 3 else 3, *arguments)
    names = load_file(tmp_path / f"ckp/paddle_{saved_at}/training_state/optimizer.safetensors").keys()
    assert names and not any(frozen in name for name in names)
    assert result(pretrain(*arguments, *RESUME)) == result(whole)


def test_a_checkpoint_of_the_format_before_resumes_bit_for_bit(pretrain, tmp_path):
    """It has no tokenizer, no rules of masks and no flags of the recipe in its identity, and no words on its data."""
    arguments = ["--max_steps", "4", "--save_steps", "2"]
    expected = result(pretrain(*arguments, output=tmp_path / "whole"))
    output = pretrain(*arguments)
    shutil.rmtree(output / "paddle_4")

    def make_old(state):
        new = ("masking.", "tokenizer", "stages", "initialization", "final_", "eval_", "optimizer")
        dropped = [name for name in state["identity"] if name.startswith(new)]
        assert len(dropped) > 6
        for name in dropped:
            del state["identity"][name]
        del state["data"], state["planned_steps"], state["is_evaluated"]

    change_state(output / "paddle_2", make_old)
    pretrain(*arguments, *RESUME)
    assert result(output) == expected


@pytest.mark.parametrize("is_same", [True, False])
def test_processes_that_find_different_checkpoints_stop(pretrain, monkeypatch, is_same):
    """Two processes, of which the other finds the same, or none."""
    difference = run_pretrain.paddle.to_tensor([0 if is_same else 1])  # of digests: the last comparison's has one
    pretrain("--max_steps", "2", "--batch_size", "16")
    monkeypatch.setattr(run_pretrain.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(run_pretrain, "sum_over_ranks", lambda x: 2 * x + (difference if x.shape == [1] else 0))
    monkeypatch.setattr(run_pretrain, "wait_for_all_ranks", lambda: None)  # its sum is of one number, too
    monkeypatch.setattr(run_pretrain.dist, "init_parallel_env", lambda: None)
    monkeypatch.setattr(run_pretrain, "build_model", lambda *arguments: kill())  # what comes after the comparison
    with pytest.raises((Killed, UserError)) as stopped:
        pretrain("--max_steps", "2", *RESUME)
    assert stopped.type is Killed if is_same else "share one --output_dir" in str(stopped.value)


def test_the_global_batch_may_be_cut_otherwise(pretrain, monkeypatch, tmp_path):
    monkeypatch.setattr(run_pretrain, "show_masking", lambda *arguments: None)  # which reads a sample of rows
    reads, real = [], run_pretrain.TokenRows.__getitem__
    monkeypatch.setattr(
        run_pretrain.TokenRows, "__getitem__", lambda rows, key: reads.append((rows, key)) or real(rows, key)
    )
    arguments = ["--save_steps", "2", "--max_steps", "6"]
    pretrain(*arguments, "--batch_size", "16", output=tmp_path / "whole")
    kill_in_update(pretrain, monkeypatch, 4, *arguments, "--batch_size", "16")
    pretrain(*arguments, *RESUME, "--batch_size", "4", "--gradient_accumulation_steps", "4")
    by_run = {}
    for rows, key in reads:
        if key[0] == 0:  # the first epoch
            by_run.setdefault(id(rows), []).append(key)
    whole, killed, resumed = by_run.values()
    assert len(whole) == 6 * 16 and len(killed) >= 4 * 16
    assert resumed == whole[4 * 16 :]  # and nothing that was passed is read again


def test_auto_is_a_fresh_start_where_there_is_no_checkpoint_and_nothing_remains_to_do_at_the_end(pretrain, capsys):
    output = pretrain("--max_steps", "2", *RESUME)
    assert "training from scratch" in capsys.readouterr().out
    first = result(output)
    pretrain("--max_steps", "2", *RESUME)
    assert f"done: {output / 'paddle_2'}" in capsys.readouterr().out
    assert result(output) == first


def test_the_newest_checkpoints_are_kept_and_what_a_kill_left_of_a_step_is_gone_when_it_is_saved(pretrain, tmp_path):
    output = tmp_path / "ckp"
    (output / "paddle_4.being_written/new/training_state").mkdir(parents=True)
    (output / "paddle_4.being_written/of_another_version").mkdir()
    pretrain("--max_steps", "7", "--save_steps", "2", "--save_total_limit", "2", *RESUME)
    assert sorted(path.name for path in output.glob("paddle_*")) == ["paddle_6", "paddle_7"]
    (output / "paddle_04").mkdir()
    assert [*run_pretrain.checkpoints_in(str(output))] == [4, 6, 7]


def test_what_a_kill_left_of_a_step_that_is_never_saved_again_is_put_right_at_the_next_start(pretrain, tmp_path):
    output = pretrain("--max_steps", "2", "--save_steps", "1")
    (output / "paddle_437.being_written/new/training_state").mkdir(parents=True)
    (output / "paddle_2.being_written").mkdir()
    (output / "paddle_2").rename(output / "paddle_2.being_written/old")  # the kill came before the new one had its name
    (output / "paddle_2_hf.being_written/new").mkdir(parents=True)  # an export's
    (output / "paddle_9.being_written/new").mkdir(parents=True)
    with utils.lock(str(output / "paddle_9.being_written")):  # somebody writes there
        pretrain("--max_steps", "2", "--save_steps", "1", *RESUME)
        assert (output / "paddle_9.being_written/new").exists()
    assert (output / "paddle_2_hf.being_written/new").exists()
    others = ["paddle_2_hf.being_written", "paddle_9.being_written"]
    assert sorted(path.name for path in output.glob("paddle_*")) == ["paddle_1", "paddle_2", *others]
    utils.check_checksums(str(output / "paddle_2"))


def test_a_stopped_run_names_its_checkpoint_where_auto_would_take_an_abandoned_ones(pretrain, monkeypatch, capsys):
    options = ["--max_steps", "6", "--save_steps", "2"]
    output = pretrain(*options)
    expected = result(output)
    stop_in_update(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    pretrain(*options, "--resume_from_checkpoint", str(output / "paddle_2"))
    advice = capsys.readouterr().out.splitlines()[-1]
    assert advice.startswith("stopped by a signal after step 3: ")
    flags = re.search(r"add (--resume_from_checkpoint \S+) to go on$", advice)[1].split()
    assert flags[1] == str(output / "paddle_3")
    shutil.rmtree(output / "paddle_6")
    assert result(pretrain(*options, *flags)) == expected


def test_a_run_that_is_stopped_before_it_saves_names_the_checkpoint_of_another_directory(
    pretrain, monkeypatch, capsys, tmp_path
):
    options = ["--max_steps", "4", "--save_steps", "2"]
    start = pretrain(*options, output=tmp_path / "first") / "paddle_2"
    around_losses(monkeypatch, before=lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # the repeated evaluation
    pretrain(*options, "--resume_from_checkpoint", str(start), output=tmp_path / "second")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"add --resume_from_checkpoint {start} to go on")


def test_a_run_with_nothing_left_to_do_names_the_checkpoint_that_is_there(pretrain, capsys, tmp_path):
    done = pretrain("--max_steps", "2", output=tmp_path / "first") / "paddle_2"
    pretrain("--max_steps", "2", "--resume_from_checkpoint", str(done), output=tmp_path / "second")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"done: {done}, evaluation loss ")


@pytest.mark.parametrize(
    "losses, kept",
    [([3.0, 1.0, 2.0, 2.0, 2.0], ["paddle_2", "paddle_5"]), ([3.0, 1.0, 2.0, 2.0, 0.5], ["paddle_5"])],
    ids=["an older one", "the newest"],
)
def test_the_best_checkpoint_stays_beside_the_newest(pretrain, monkeypatch, losses, kept):
    real, losses = run_pretrain.evaluate, iter(losses)
    monkeypatch.setattr(run_pretrain, "evaluate", lambda *run: {**real(*run), "eval_loss": next(losses)})
    output = pretrain("--max_steps", "5", "--save_steps", "1", "--save_total_limit", "1")
    assert sorted(path.name for path in output.glob("paddle_*")) == kept


def test_what_signals_leave_is_limited_too(pretrain, monkeypatch, tmp_path):
    options = ["--max_steps", "9", "--save_steps", "8", "--save_total_limit", "1"]
    for update in (2, 4):  # far from the next evaluation
        with monkeypatch.context() as patched:
            stop_in_update(patched, update, lambda: os.kill(os.getpid(), signal.SIGTERM))
            pretrain(*options, *RESUME)
    assert sorted(path.name for path in (tmp_path / "ckp").glob("paddle_*")) == ["paddle_3", "paddle_5"]
    kill_in_update(pretrain, monkeypatch, 6, *options, *RESUME)
    assert [path.name for path in (tmp_path / "ckp").glob("paddle_*")] == ["paddle_5"]


def test_an_old_checkpoint_that_was_moved_and_linked_is_unlinked_and_stays_where_it_is(pretrain, monkeypatch, tmp_path):
    def evaluate(run, _):
        return {"eval_loss": 9.0 - run.progress.global_step, "perplexity": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(run_pretrain, "evaluate", evaluate)
    options = ["--max_steps", "5", "--save_steps", "1", "--save_total_limit", "1"]
    kill_in_update(pretrain, monkeypatch, 2, *options)
    output = tmp_path / "ckp"
    (output / "paddle_2").rename(tmp_path / "elsewhere")
    (output / "paddle_2").symlink_to(tmp_path / "elsewhere")
    pretrain(*options, *RESUME)
    assert [path.name for path in output.glob("paddle_*")] == ["paddle_5"]
    utils.check_checksums(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("changed", [("--max_steps", "9"), ("--max_steps", "9", "--save_steps", "2")], ids=" ".join)
def test_a_best_checkpoint_at_the_former_end_stays_where_a_run_grows(pretrain, monkeypatch, changed):
    """Its evaluation, which is not in it, is repeated though none is due at that step any more."""
    losses, evaluation = {5: 1.0}, {"perplexity": 1.0, "accuracy": 0.5}
    monkeypatch.setattr(
        run_pretrain, "evaluate", lambda run, _: {"eval_loss": losses.get(run.progress.global_step, 2.0), **evaluation}
    )
    constant = ["--lr_scheduler", "constant_with_warmup", "--save_steps", "4", "--save_total_limit", "1"]
    output = pretrain(*constant, "--max_steps", "5")
    pretrain(*constant, *changed, *RESUME)
    assert {"paddle_5", "paddle_9"} <= {path.name for path in output.glob("paddle_*")}
    evaluations = {record["step"]: record["eval_loss"] for record in metrics(output, "evaluation")}
    assert evaluations[5] == 1.0 and evaluations[9] == 2.0


def test_it_is_said_where_a_resumed_run_evaluates_on_other_rows(pretrain, capsys):
    said = "warning: --max_eval_rows was 20: the best checkpoint is chosen by losses over different rows"
    options = ["--max_steps", "4", "--save_steps", "2", "--max_eval_rows"]
    pretrain(*options, "20")
    pretrain(*options, "20", *RESUME)
    assert said not in capsys.readouterr().out
    pretrain(*options, "10", *RESUME)
    assert said in capsys.readouterr().out


def test_a_run_may_not_write_into_a_checkpoint(pretrain):
    """It would go with the checkpoint when --save_total_limit deletes that."""
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    files = sorted(checkpoint.rglob("*"))
    for steps in ("1", "0"):
        model = ["--max_steps", steps, "--model_name_or_path", str(checkpoint)]
        with pytest.raises(UserError, match=r"more/ckp lies in the checkpoint .*paddle_1: choose one outside of it"):
            pretrain(*model, output=checkpoint / "more/ckp")
        with pytest.raises(UserError, match=r"--output_dir .*paddle_1 is a checkpoint: choose one outside of it"):
            pretrain(*model, output=checkpoint)
    assert sorted(checkpoint.rglob("*")) == files


@pytest.mark.parametrize("steps", ["1", "0"])
def test_a_run_may_not_write_among_the_rows_or_nowhere(pretrain, packed_data, steps):
    files = sorted(packed_data.rglob("*"))
    for folder in (packed_data, packed_data / "train"):
        with pytest.raises(UserError, match=r"is a data set: choose another"):
            pretrain("--max_steps", steps, output=folder)
    assert sorted(packed_data.rglob("*")) == files
    with pytest.raises(UserError, match="--output_dir is empty: name a directory"):
        pretrain("--max_steps", steps, "--output_dir", "")


def test_an_evaluation_says_where_rows_are_longer_than_those_of_training(
    pretrain, corpus, packed_data, tmp_path, capsys
):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    options = "--max_steps", "0", "--model_name_or_path", str(checkpoint), "--max_seq_length", "64"
    longer = "--tokenizer_name", str(packed_data / "tokenizer"), "--max_seq_length"
    said = f"warning: rows of 48 tokens, and {checkpoint} was last trained on rows of 32"
    for length in ("48", "32", "16"):
        data = create(corpus, tmp_path / length, *longer, length)
        pretrain(*options, data=data, output=tmp_path / f"evaluation_{length}")
        shown = capsys.readouterr().out
        assert (said in shown) == ("was last trained on" in shown) == (length == "48")
    pretrain("--max_steps", "0", output=tmp_path / "untrained")
    assert "warning: the weights evaluated here are new ones" in capsys.readouterr().out


def test_rotation_never_deletes_the_only_complete_checkpoint(pretrain):
    arguments = ["--max_steps", "6", "--save_steps", "2"]
    output = pretrain(*arguments)
    for step in (4, 6):
        flip_bit(output / f"paddle_{step}/model.safetensors")
    pretrain(*arguments, *RESUME, "--save_total_limit", "1")  # from paddle_2, beside damaged ones of later steps
    assert [path.name for path in output.glob("paddle_*")] == ["paddle_6"]  # the newest, and the best
    utils.check_checksums(str(output / "paddle_6"))


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(pretrain):
    output = pretrain("--max_steps", "2")
    flip_bit(output / "paddle_2/model.safetensors")
    before = (output / "metrics.jsonl").read_text(), (output / "paddle_2/SHA256SUMS").read_text()
    with pytest.raises(UserError, match=r"paddle_2: model\.safetensors is damaged: give another"):
        pretrain("--max_steps", "2", *RESUME)
    assert ((output / "metrics.jsonl").read_text(), (output / "paddle_2/SHA256SUMS").read_text()) == before


def test_a_checkpoint_from_before_the_first_good_update_resumes(pretrain, monkeypatch, tmp_path):
    arguments = ["--max_steps", "4", "--save_steps", "1"]
    infinite_losses(monkeypatch, {0})
    expected = result(pretrain(*arguments, output=tmp_path / "whole"))
    kill_in_update(pretrain, monkeypatch, 1, *arguments)
    assert metrics(tmp_path / "ckp", "train")[0]["loss"] is None
    assert result(pretrain(*arguments, *RESUME)) == expected


def test_a_second_interrupt_ends_the_process_at_once():
    before, stop = signal.getsignal(signal.SIGINT), run_pretrain.StopSignal()
    with stop.catching_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_gives_the_signals_back(pretrain):
    """As in a notebook, whose next cell is to be interrupted as ever."""
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    pretrain("--max_steps", "1")
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_a_signal_that_is_ignored_stays_so():
    """nohup ignores SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = run_pretrain.StopSignal()
    with stop.catching_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.requested


def test_an_interrupt_that_is_ignored_stays_so_when_the_script_starts():
    """So a shell starts what stands before an &, which Ctrl-C is not to reach."""
    code = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    print("ignored:", signal.getsignal(signal.SIGINT) == signal.SIG_IGN)
"""
    command = [sys.executable, "-c", f"import sys; sys.argv = ['run_pretrain.py', '--help']\n{code}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "ignored: True"
