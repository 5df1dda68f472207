"""Fixtures of the tests: the real data where it is, a small corpus where it is not, and short training runs."""

import ctypes
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import prepare_for_paddle

prepare_for_paddle()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so it is where a shell runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # and so it is under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TINY = "tiny-for-tests"  # 2 layers of width 32
STEPS, SAVE_STEPS = 40, 7
RUN = f"--max_steps {STEPS} --save_steps {SAVE_STEPS} --logging_steps 3 --batch_size 64 --warmup_steps 5".split()
TWO_THEN_FOUR = ["--save_steps", "2", "--max_steps", "4"]
RESUME = ["--resume_from_checkpoint", "auto"]


class Killed(BaseException):
    """Stands for a kill inside this process."""


@pytest.fixture(autouse=True)
def signal_handlers():
    """Those of pytest are back after a test."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    path = pathlib.Path(os.environ.get("ROBERTA_DATA", ROOT / "../shared/data")).resolve()
    if not path.is_dir():
        pytest.skip(f"the real data is not at {path}; ROBERTA_DATA names another place")
    return path


def text_of_words(documents: int, seed: int = 0) -> str:
    """Documents of made-up sentences over 200 words, some words far more frequent than others."""
    random_ = random.Random(seed)
    words = ["".join(random_.choices("abcdefghijklmnopqrstuvwxyz", k=random_.randint(1, 8))) for _ in range(200)]
    sentences = [
        " ".join(random_.choices(words, weights=range(200, 0, -1), k=random_.randint(4, 30)))
        for _ in range(documents * 5)
    ]
    return "\n\n".join("\n".join(sentences[5 * i : 5 * i + 5]) for i in range(documents)) + "\n"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(text_of_words(300))
    return path


@pytest.fixture(scope="session")
def packed_data(corpus, tmp_path_factory) -> pathlib.Path:
    """Packed rows of 32 tokens, a tokenizer of 400."""
    return create(corpus, tmp_path_factory.mktemp("packed") / "data")


@pytest.fixture(scope="session")
def ragged_data(corpus, tmp_path_factory) -> pathlib.Path:
    """Rows of at most 32 tokens, one a line."""
    return create(corpus, tmp_path_factory.mktemp("ragged") / "data", "--line_by_line", "True")


def create(corpus: pathlib.Path, output: pathlib.Path, *arguments: str) -> pathlib.Path:
    import create_data

    options = "--max_seq_length 32 --validation_split_percentage 10"
    if "--tokenizer_name" not in arguments:
        options += " --tokenizer_name train --vocab_size 400"
    create_data.main(["--data_files", str(corpus), "--output_dir", str(output), *options.split(), *arguments])
    return output


@pytest.fixture
def pretrain(monkeypatch, packed_data, tmp_path, request):
    """Runs run_pretrain.main() in this process on a tiny model; returns its output directory."""
    import run_pretrain

    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(run_pretrain.utils, "draw_curve", lambda records, path: None)
    monkeypatch.setitem(run_pretrain.ARCHITECTURES, TINY, (2, 32, 2))

    def run(*arguments: str, output: pathlib.Path = tmp_path / "ckp", data: pathlib.Path = packed_data) -> pathlib.Path:
        run_pretrain.main([*training_arguments(data, output), *arguments])
        return output

    return run


def training_arguments(data: pathlib.Path, output: pathlib.Path, model: str = TINY) -> list:
    options = "--device cpu --max_seq_length 32 --batch_size 8 --learning_rate 1e-3 --logging_steps 1 --amp False"
    return ["--model_name_or_path", model, "--input_file", str(data), "--output_dir", str(output), *options.split()]


def around_updates(monkeypatch, before=None, after=None) -> None:
    """Calls before(run) ahead of each update and after(run, result) behind it, when progress.global_step updates
    are done."""
    import run_pretrain

    real = run_pretrain.train_update

    def train_update(run, batches):
        if before:
            before(run)
        result = real(run, batches)
        if after:
            after(run, result)
        return result

    monkeypatch.setattr(run_pretrain, "train_update", train_update)


def around_losses(monkeypatch, before=None, change=None) -> None:
    """Calls before(model, batch) ahead of each forward pass, and replaces its loss by change(loss, model, batch)."""
    import run_pretrain

    real = run_pretrain.masked_loss

    def masked_loss(model, batch):
        if before:
            before(model, batch)
        loss, *rest = real(model, batch)
        return (change(loss, model, batch) if change else loss), *rest

    monkeypatch.setattr(run_pretrain, "masked_loss", masked_loss)


def infinite_losses(monkeypatch, steps: set) -> None:
    """Makes the loss of the first micro-batch infinite in the updates that follow `steps`."""
    bad = [False]
    around_updates(monkeypatch, before=lambda run: bad.append(run.progress.global_step in steps))

    def change(loss, model, batch):
        is_bad = model.training and bad[-1]
        bad[-1] = False
        return loss * float("inf") if is_bad else loss

    around_losses(monkeypatch, change=change)


def stop_in_update(monkeypatch, step: int, action) -> None:
    """Calls action() in the update that follows `step`, once."""
    actions = [action]
    around_updates(
        monkeypatch, before=lambda run: actions.pop()() if actions and run.progress.global_step == step else None
    )


def kill() -> None:
    raise Killed


def kill_in_update(pretrain, monkeypatch, step: int, *arguments: str, **places) -> None:
    stop_in_update(monkeypatch, step, kill)
    with pytest.raises(Killed):
        pretrain(*arguments, **places)


def run_of(model, *arguments: str, precision: str = "float32", **progress):
    """A Run of a model as main() makes one, with these arguments and on this machine, but for its files."""
    import run_pretrain

    args = run_pretrain.parse_arguments([*arguments])
    machine = run_pretrain.Machine("cpu", precision)
    recipe = run_pretrain.choose_recipe(args)
    optimizer = scaler = None
    if model is not None:
        optimizer, scaler = run_pretrain.build_optimizer(model, args, recipe, machine)
        optimizer.set_lr(recipe.learning_rate)  # as train() does for each update, by the schedule
    return run_pretrain.Run(
        args,
        machine,
        model,
        report=None,
        recipe=recipe,
        progress=run_pretrain.Progress(**progress),
        parallel=model,
        optimizer=optimizer,
        scaler=scaler,
    )


def result(output) -> dict:
    """What must be equal: weights and optimizer state, byte for byte, and every loss that was logged."""
    import run_pretrain

    steps = run_pretrain.checkpoints_in(str(output))
    final = output / f"paddle_{max(steps)}"
    digests = {
        name: hashlib.sha256((final / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "training_state/optimizer.safetensors")
    }
    losses = {
        (r["event"], r["step"]): r.get("loss", r.get("eval_loss"))
        for event in ("train", "evaluation")
        for r in metrics(output, event)
    }
    return {"checkpoint": final.name, **digests, "losses": losses}


def metrics(output: pathlib.Path, event: str) -> list:
    """The records of metrics.jsonl of one kind; of a step that was done again, the last."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    by_step = {record["step"]: record for record in records if record["event"] == event}
    return [by_step[step] for step in sorted(by_step)]


def read_visualdl(folder: pathlib.Path) -> dict:
    """The points of each curve in a directory's one file, {tag: {step: value}}; of several, VisualDL shows one."""
    from visualdl import LogReader

    [file] = folder.iterdir()
    reader = LogReader(file_path=str(file))
    return {tag: {p.id: p.value for p in reader.get_data("scalar", tag)} for tag in reader.get_tags()["scalar"]}


def run_script(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs a script of the project as its users do."""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def run_as_ordinary_user(
    code: str, folder: pathlib.Path, arguments: list, protected: list
) -> subprocess.CompletedProcess:
    """Runs code in a folder, as a user whom permissions bind; the `protected` in it belong to another, read-only.

    Root is bound by none of them, so it drops that right (CAP_DAC_OVERRIDE and its like) for good. It stays the owner
    of its own files, and can thus use an interpreter that is its own.
    """
    for name in protected:
        for path in [folder / name, *(folder / name).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
            if os.getuid() == 0:
                os.chown(path, 12345, 12345)

    def drop_rights():
        if os.getuid() == 0:
            libc = ctypes.CDLL(None)
            for capability in (0, 1, 2, 3):  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
                assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP: gone after the exec

    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=drop_rights)
