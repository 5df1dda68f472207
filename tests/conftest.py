"""Fixtures of the tests: the real data where it is, a small corpus where it is not, and short training runs."""

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


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


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

    options = "--tokenizer_name train --vocab_size 400 --max_seq_length 32 --validation_split_percentage 10"
    create_data.main(["--data_files", str(corpus), "--output_dir", str(output), *options.split(), *arguments])
    return output


@pytest.fixture
def pretrain(monkeypatch, packed_data, tmp_path):
    """Runs run_pretrain.main() in this process on a tiny model; returns its output directory."""
    import run_pretrain

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


def run_of(model, *arguments: str, precision: str = "float32", **progress):
    """A Run of a model as main() makes one, with these arguments and on this machine, but for its files."""
    import run_pretrain

    args = run_pretrain.parse_arguments([*arguments])
    machine = run_pretrain.Machine("cpu", precision, "for a test")
    optimizer, scaler = run_pretrain.build_optimizer(model, args, precision) if model is not None else (None, None)
    progress = run_pretrain.Progress(**progress)
    return run_pretrain.Run(args, machine, model, None, progress, parallel=model, optimizer=optimizer, scaler=scaler)


def metrics(output: pathlib.Path, event: str) -> list:
    """The records of metrics.jsonl of one kind; of a step that was done again, the last."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    by_step = {record["step"]: record for record in records if record["event"] == event}
    return [by_step[step] for step in sorted(by_step)]


def run_script(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs a script of the project as its users do."""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
