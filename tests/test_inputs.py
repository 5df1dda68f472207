"""What is given is read once, held against every sum that lies beside it, and used or refused: data, ranks, flags."""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import datasets
import numpy as np
import paddle
import pyarrow
import pytest
from conftest import (
    RESUME,
    ROOT,
    TINY,
    Killed,
    around_updates,
    create,
    kill,
    metrics,
    read_visualdl,
    run_as_ordinary_user,
    text_of_words,
    training_arguments,
)

import run_pretrain
import utils
from utils import UserError

SCRIPTS = ("create_data.py", "run_pretrain.py", "utils.py")
ROWS = "train/data-00000-of-00001.arrow"

# ---------------------------------------------------------------- arguments are values


def written_arguments(source: str) -> list[str]:
    """The statements that write to an attribute of `args`, by whatever name it is reached (run.args, vars(args))."""

    def is_args(node) -> bool:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "vars":
            return any(is_args(argument) for argument in node.args)
        if isinstance(node, ast.Attribute) and node.attr == "__dict__":
            return is_args(node.value)
        return getattr(node, "id", getattr(node, "attr", None)) == "args"

    written = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            written += [ast.unparse(node)] if is_args(node.value) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            written += [ast.unparse(node)] if is_args(node.args[0]) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_args(node.func.value):
            written += [ast.unparse(node)] if node.func.attr in ("update", "setdefault", "pop", "__setattr__") else []
    return written


WRITING = """args.x = 1; run.args.x += 1; setattr(args, 'x', 1); vars(args)['x'] = 1; vars(args).update(x=1);
del args.x; args.x, y = 1, 2; args.__dict__['x'] = 1; [0 for args.x in y]"""


@pytest.mark.parametrize("statement", WRITING.replace("\n", " ").split("; "))
def test_a_statement_that_writes_to_the_arguments_is_found(statement):
    assert written_arguments(statement) and not written_arguments("y = args.x; run.args = args; z = vars(args)['x']")


@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_are_never_written_to(script):
    assert written_arguments((ROOT / script).read_text()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_default_is_shared_or_computed(script):
    """A default is made once, when the function is defined: one that changes would be all callers' together."""
    functions = [node for node in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(node, ast.FunctionDef)]
    defaults = [d for f in functions for d in [*f.args.defaults, *f.args.kw_defaults] if d is not None]
    assert len(defaults) > 1
    changing = ast.List | ast.Dict | ast.Set | ast.Call | ast.ListComp | ast.DictComp
    assert [ast.unparse(default) for default in defaults if isinstance(default, changing)] == []


def test_a_run_that_is_constructed_changes_nothing(monkeypatch):
    monkeypatch.setattr(run_pretrain.signal, "signal", None)
    monkeypatch.setattr(paddle, "seed", None)
    one, other = (run_pretrain.Run(None, None, None, None) for _ in range(2))
    assert one.progress is not other.progress and one.stop is not other.stop and not one.stop.requested
    with pytest.raises(AttributeError):  # frozen
        run_pretrain.Machine("cpu", "float32").rank = 1


# ---------------------------------------------------------------- data: read once, compared with its sums


@pytest.fixture
def data(packed_data, tmp_path):
    """A copy of the packed data that a test may change."""
    shutil.copytree(packed_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    """Rows of another text, with a tokenizer of the same size."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "other.txt").write_text(text_of_words(300, seed=1))
    return create(folder / "other.txt", folder / "data")


def at_step(monkeypatch, step: int, action) -> None:
    around_updates(monkeypatch, before=lambda run: action() if run.progress.global_step == step else None)


def files_of(tokenizer) -> dict:
    return {path.name: path.read_bytes() for path in tokenizer.iterdir() if path.is_file()}


def test_a_tokenizer_that_is_replaced_during_a_run_is_not_the_checkpoints(
    pretrain, monkeypatch, packed_data, data, other_data
):
    def replace():
        shutil.rmtree(data)
        shutil.copytree(other_data, data)

    at_step(monkeypatch, 1, replace)
    output = pretrain("--max_steps", "2", data=data)
    expected = files_of(packed_data / "tokenizer")
    saved = files_of(output / "paddle_2")
    assert {name: saved[name] for name in expected} == expected
    assert expected["vocab.json"] != (data / "tokenizer/vocab.json").read_bytes()
    shutil.rmtree(data)  # the right rows again, with the other tokenizer
    shutil.copytree(packed_data, data)
    shutil.rmtree(data / "tokenizer")
    shutil.copytree(other_data / "tokenizer", data / "tokenizer")
    (data / "data_card.json").unlink()
    monkeypatch.setattr(run_pretrain, "build_config", lambda *arguments: saved_config)
    saved_config = run_pretrain.transformers.RobertaConfig.from_pretrained(str(output / "paddle_2"))
    with pytest.raises(
        UserError, match=r"would change the result: the masking.*|the tokenizer's files in --input_file"
    ):
        pretrain("--max_steps", "2", *RESUME, data=data)


def test_a_data_directory_that_is_renamed_during_a_run_costs_nothing(
    pretrain, monkeypatch, packed_data, data, tmp_path
):
    expected = pretrain("--max_steps", "4", output=tmp_path / "undisturbed")
    at_step(monkeypatch, 1, lambda: data.rename(tmp_path / "renamed"))
    output = pretrain("--max_steps", "4", "--save_steps", "2", data=data)
    assert not data.exists()
    for name in ("model.safetensors", "vocab.json"):
        assert (output / "paddle_4" / name).read_bytes() == (expected / "paddle_4" / name).read_bytes()


def cut_at_a_batch(path, rows: int = 1000) -> None:
    """Leaves the first rows of an Arrow file, as a sound file of fewer batches."""
    with pyarrow.ipc.open_stream(path) as stream:
        table = stream.read_all()
    assert len(table) > rows
    path.unlink()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table.slice(0, rows))


def flip_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


CHANGED_DATA = {
    ROWS: cut_at_a_batch,
    "validation/data-00000-of-00001.arrow": flip_bit,
    "tokenizer/merges.txt": lambda path: path.write_text(path.read_text().rstrip("\n").rpartition("\n")[0] + "\n"),
    "train/state.json": lambda path: path.write_text(path.read_text() + " "),
}


@pytest.mark.parametrize("name", CHANGED_DATA)
def test_data_is_held_against_the_sums_on_its_card(pretrain, data, name):
    CHANGED_DATA[name](data / name)
    with pytest.raises(UserError, match=rf"data/{name} is not as create_data\.py wrote it .*: prepare it anew"):
        pretrain("--max_steps", "1", data=data)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_ids_beyond_the_vocabulary_are_one_line_before_anything_is_computed(pretrain, data, monkeypatch, split):
    splits = datasets.load_from_disk(str(data))
    splits[split] = splits[split].map(lambda row: {"input_ids": [*row["input_ids"][:-1], 400]})
    splits.save_to_disk(str(data) + "_beyond")
    shutil.copytree(data / "tokenizer", str(data) + "_beyond/tokenizer")  # and no card
    monkeypatch.setattr(run_pretrain, "build_model", None)
    with pytest.raises(UserError, match="ids from 0 to 400, beyond the tokenizer's vocabulary of 400: prepare it anew"):
        pretrain("--max_steps", "1", data=str(data) + "_beyond")


def test_data_sets_whose_tokenizers_differ_in_their_merges_alone_are_not_mixed(pretrain, packed_data, data):
    (data / "data_card.json").unlink()
    CHANGED_DATA["tokenizer/merges.txt"](data / "tokenizer/merges.txt")
    with pytest.raises(UserError, match=r"data/tokenizer is another tokenizer: prepare all with --tokenizer_name"):
        pretrain("--max_steps", "1", "--input_file", str(packed_data), str(data))


def test_the_constants_of_the_masking_are_part_of_a_checkpoint(pretrain, monkeypatch):
    pretrain("--max_steps", "2")
    monkeypatch.setattr(utils, "MASKED", 0.7)
    with pytest.raises(UserError, match=r"the masking's shares \(was {'masked': 0\.8, .*is {'masked': 0\.7"):
        pretrain("--max_steps", "2", *RESUME)


def test_an_ordinary_user_trains_on_data_that_is_write_protected(packed_data, tmp_path):
    code = f"""
import run_pretrain, utils
run_pretrain.ARCHITECTURES["{TINY}"] = (2, 32, 2)
try:
    open("data/dataset_dict.json", "a")
except PermissionError:
    print("write-protected")
utils.command_line(run_pretrain.main)
"""
    shutil.copytree(packed_data, tmp_path / "data")
    arguments = training_arguments("data", "ckp")
    process = run_as_ordinary_user(code, tmp_path, [*arguments, "--max_steps", "4", "--save_steps", "2"], ["data"])
    assert process.returncode == 0, process.stderr
    assert "write-protected" in process.stdout
    for step in (2, 4):
        utils.check_checksums(str(tmp_path / f"ckp/paddle_{step}"))
        assert os.access(tmp_path / f"ckp/paddle_{step}", os.W_OK)
        assert (tmp_path / f"ckp/paddle_{step}").stat().st_mode & 0o200


# ---------------------------------------------------------------- several validation sets


def with_validation_sets(data, **sets):
    """The data set with further splits, which come before the others; a copy, in a directory of its own."""
    splits = datasets.load_from_disk(str(data))
    splits = datasets.DatasetDict({**{name: make(splits) for name, make in sets.items()}, **splits})
    target = data.parent / "several"
    splits.save_to_disk(str(target))
    shutil.copytree(data / "tokenizer", target / "tokenizer")
    return target


def first_rows_of_training(splits):
    return splits["train"].select(range(50))


def test_each_validation_set_has_its_own_loss_and_the_first_decides_the_best(pretrain, data, monkeypatch, capsys):
    several = with_validation_sets(data, validation_german=first_rows_of_training)
    real, losses = run_pretrain.evaluate, iter([3.0, 9.0, 2.0, 8.0, 2.5, 1.0])  # of "validation", then of the other
    monkeypatch.setattr(run_pretrain, "evaluate", lambda *run: {**real(*run), "eval_loss": next(losses)})
    output = pretrain("--max_steps", "6", "--save_steps", "2", data=several)
    shown = capsys.readouterr().out
    assert "best: step 4, evaluation loss 2.0000" in shown
    records = metrics(output, "evaluation")
    assert [record["eval_loss"] for record in records] == [3.0, 2.0, 2.5]
    assert [record["validation_german"]["eval_loss"] for record in records] == [9.0, 8.0, 1.0]
    assert "evaluation at step 2: loss 3.0000" in shown
    assert "evaluation of validation_german at step 2: loss 9.0000" in shown
    yardsticks = re.findall(r"yardsticks( of \w+)?: below ([\d.]+)", shown)
    assert [name for name, _ in yardsticks] == ["", " of validation_german"] and len(set(yardsticks)) == 2
    tags = read_visualdl(output / "visualdl/from_0")
    assert tags["evaluation/validation_german/eval_loss"] == {2: 9.0, 4: 8.0, 6: 1.0}


def test_sets_are_evaluated_alone_too_and_an_empty_one_is_said_to_be_left_out(pretrain, data, capsys):
    several = with_validation_sets(
        data,
        validation_german=first_rows_of_training,
        validation_none=lambda splits: splits["train"].filter(lambda row: False),
    )
    output = pretrain("--max_steps", "0", data=several)
    shown = capsys.readouterr().out
    assert "validation_none has no rows and is left out" in shown
    assert "evaluation: loss" in shown and "evaluation of validation_german: loss" in shown
    [record] = metrics(output, "evaluation")
    assert record["validation_german"]["eval_loss"] != record["eval_loss"] and "validation_none" not in record


def test_data_without_a_set_named_validation_says_which_one_is_the_first(pretrain, data, capsys):
    several = with_validation_sets(data, validation_german=first_rows_of_training)
    splits = datasets.load_from_disk(str(several))
    del splits["validation"]
    splits.save_to_disk(str(several) + "_german")
    shutil.copytree(data / "tokenizer", str(several) + "_german/tokenizer")
    output = pretrain("--max_steps", "1", data=str(several) + "_german")
    [record] = metrics(output, "evaluation")
    assert record["first_set"] == "validation_german"
    assert list(utils.evaluations_by_set([record])) == ["validation_german"]
    best, done = capsys.readouterr().out.splitlines()[-2:]
    assert best.startswith("best: step 1, evaluation of validation_german loss ")
    assert done.startswith(f"done: {output}/paddle_1, evaluation of validation_german loss ")


def test_a_validation_set_may_have_any_name(pretrain, data):
    """--validation_files set=... and first_set=...: names that once were, and are, fields of a record."""
    names = ["validation_set", "validation_first_set"]
    output = pretrain(
        "--max_steps", "1", data=with_validation_sets(data, **dict.fromkeys(names, first_rows_of_training))
    )
    sets = utils.evaluations_by_set(metrics(output, "evaluation"))
    assert list(sets) == ["validation", *names] and sets[names[0]][0]["eval_loss"] == sets[names[1]][0]["eval_loss"]


# ---------------------------------------------------------------- flags that contradict each other, or do nothing

# A valid value of each flag that is not its default.
OTHER_VALUES = {
    "input_file": "elsewhere",
    "max_seq_length": "64",
    "mlm_probability": "0.3",
    "eval_mlm_probability": "0.3",
    "final_mlm_probability": "0.2",
    "whole_word_masking": "True",
    "model_name_or_path": "roberta-en-mini",
    "resize_model": "True",
    "dropout": "0.2",
    "recipe": "growing_rows",
    "initialization": "sinusoids",
    "stages": "8:0.5",
    "batch_size": "4",
    "gradient_accumulation_steps": "2",
    "optimizer": "muon",
    "learning_rate": "0.01",
    "lr_scheduler": "cosine",
    "warmup_steps": "3",
    "weight_decay": "0.1",
    "adam_epsilon": "1e-8",
    "max_grad_norm": "2",
    "num_train_epochs": "2",
    "max_steps": "0",
    "max_skipped_updates": "3",
    "recompute": "True",
    "seed": "7",
    "output_dir": "out",
    "logging_steps": "5",
    "save_steps": "5",
    "save_total_limit": "2",
    "max_eval_rows": "10",
    "resume_from_checkpoint": "auto",
    "device": "cpu",
    "amp": "False",
    "amp_dtype": "bfloat16",
    "scale_loss": "16",
}
REFUSED_PAIRS = {frozenset(pair) for pair in [("max_steps", "resume_from_checkpoint"), ("amp", "amp_dtype")]}


def outcome(*names: str) -> str:
    """What becomes of flags given together, before any data is read: refused, or the line on unused ones."""
    arguments = [word for name in names for word in (f"--{name}", OTHER_VALUES[name])]
    lines = []
    try:
        args = run_pretrain.parse_arguments(arguments)
        machine = run_pretrain.Machine("cpu", run_pretrain.choose_precision(args, "cpu")[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_pretrain, "log", lines.append)
            run_pretrain.log_unused_flags(args, machine)
    except UserError:
        return "refused"
    return " ".join(lines)


@pytest.fixture
def has_bfloat16(monkeypatch):
    monkeypatch.setattr(run_pretrain, "onednn", lambda: types.SimpleNamespace(has_bfloat16=True))


def test_every_pair_of_flags_is_accepted_or_said_to_be_unused_or_refused(has_bfloat16):
    flags = set(vars(run_pretrain.parse_arguments([])))
    assert set(OTHER_VALUES) == flags, "a new flag needs a value here"
    for_training = run_pretrain.build_parser().for_training()
    for pair in itertools.combinations(sorted(flags), 2):
        found = outcome(*pair)
        if frozenset(pair) in REFUSED_PAIRS:
            assert found == "refused", pair
            continue
        assert found != "refused", pair
        unused = {name for name in pair if name in for_training} if "max_steps" in pair else {"scale_loss"} & set(pair)
        assert set(re.findall(r"--(\w+)", found)) - {"max_steps"} == unused, pair


REFUSED = {
    "--max_steps 0 --resume_from_checkpoint auto": "--max_steps 0 evaluates and resumes nothing",
    "--max_steps 0 --resume_from_checkpoint missing": "--max_steps 0 evaluates and resumes nothing",
    "--max_steps 1 --amp False --amp_dtype bfloat16": "--amp_dtype bfloat16 needs --amp True",
    "--max_steps 1 --amp True --amp_dtype float16": "--amp_dtype float16: a CPU computes in bfloat16 or float32",
    "--max_steps 1 --recompute True": "--recompute True is for GPUs",
    "--max_steps 5 --warmup_steps 6": "--warmup_steps 6 is longer than the training (5 updates): lower it",
    "--max_steps 1 --resume_from_checkpoint True": "True is no checkpoint: write auto, or a checkpoint's path",
    "--max_steps 1 --resume_from_checkpoint false": "false is no checkpoint: write no, or a checkpoint's path",
    "--max_steps 1 --resume_from_checkpoint missing": "cannot resume from missing",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_flags_that_contradict_each_other_are_refused(pretrain, arguments):
    with pytest.raises(UserError) as error:
        pretrain(*arguments.split())
    assert REFUSED[arguments] in str(error.value) and "\\n" not in str(error.value)


def test_bfloat16_is_refused_where_it_was_asked_for_and_is_not_there(monkeypatch):
    monkeypatch.setattr(run_pretrain, "onednn", lambda: types.SimpleNamespace(has_bfloat16=False))
    with pytest.raises(UserError, match="--amp_dtype bfloat16: this processor computes in float32 alone; leave it out"):
        run_pretrain.choose_precision(run_pretrain.parse_arguments(["--amp_dtype", "bfloat16"]), "cpu")
    assert run_pretrain.choose_precision(run_pretrain.parse_arguments([]), "cpu")[0] == "float32"  # left out


def test_evaluating_what_one_wanted_to_resume_works_as_the_message_says(pretrain, capsys):
    output = pretrain("--max_steps", "2")
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "0", *RESUME)
    remedy = re.search(r"--model_name_or_path .*", str(error.value))[0]
    assert remedy == f"--model_name_or_path {output / 'paddle_2'}"
    capsys.readouterr()
    pretrain("--max_steps", "0", *shlex.split(remedy))
    loss = metrics(output, "evaluation")[-1]["eval_loss"]
    assert f"evaluation: loss {loss:.4f}" in capsys.readouterr().out


def test_an_evaluation_says_which_flags_it_does_not_use(pretrain, capsys):
    pretrain("--max_steps", "0", "--num_train_epochs", "3", "--save_steps", "7", "--warmup_steps", "3")
    [line] = [line for line in capsys.readouterr().out.splitlines() if "not used" in line]
    for flag in ("--num_train_epochs", "--save_steps", "--warmup_steps"):
        assert flag in line
    assert "--batch_size" not in line and "--input_file" not in line


def test_the_directory_of_a_checkpoint_instead_of_the_checkpoint_is_told_the_checkpoint(pretrain, tmp_path):
    output = pretrain("--max_steps", "4", "--save_steps", "2")
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "4", "--resume_from_checkpoint", str(output), output=tmp_path / "elsewhere")
    meant = re.search(r"did you mean (.*)\?", str(error.value))[1]
    assert meant == str(output / "paddle_4")
    pretrain("--max_steps", "4", "--resume_from_checkpoint", meant, output=tmp_path / "elsewhere")


def test_a_mistyped_checkpoint_is_told_the_one_that_was_meant(pretrain, tmp_path):
    output = pretrain("--max_steps", "4", "--save_steps", "2")
    for given, meant in (("paddle_2", "paddle_2"), (str(output / "paddle_40"), "paddle_4")):
        with pytest.raises(UserError, match=f"{given}, which is no directory: did you mean {output / meant}\\?"):
            pretrain("--max_steps", "4", "--resume_from_checkpoint", given)
    with pytest.raises(UserError, match=f"paddle_40, which is no directory: did you mean {output / 'paddle_4'}\\?"):
        pretrain("--resume_from_checkpoint", str(output / "paddle_40"), output=tmp_path / "elsewhere")
    other = pretrain("--max_steps", "2", output=tmp_path / "other") / "paddle_2"
    with pytest.raises(UserError, match=f"or go on from one of them, as {output / 'paddle_4'}$"):
        pretrain("--max_steps", "4", "--resume_from_checkpoint", str(other))


def test_max_steps_goes_before_the_default_of_the_epochs_and_the_line_says_which_flag_ended_it(
    pretrain, monkeypatch, capsys, packed_data
):
    rows = len(datasets.load_from_disk(str(packed_data))["train"])
    an_epoch = rows // 8
    at_step(monkeypatch, 0, kill)
    for arguments, steps, ended_by in (
        ("--max_steps 3000", 3000, ""),
        ("", 3 * an_epoch, ""),
        ("--max_steps 3000 --num_train_epochs 2", 2 * an_epoch, ", ended by --num_train_epochs"),
        ("--max_steps 30 --num_train_epochs 2", 30, ", ended by --max_steps"),
    ):
        assert steps != 3 * an_epoch or not arguments
        with pytest.raises(Killed):
            pretrain(*arguments.split())
        line = f"{steps:,} updates of 8 rows ({steps / an_epoch:.3g} epochs{ended_by})"
        assert line in capsys.readouterr().out


# ---------------------------------------------------------------- absurd numbers

NUMBERS = [name for name, value in OTHER_VALUES.items() if re.fullmatch(r"[\d.e-]+", value)]
ABSURD = ["nan", "inf", "-inf", "1e400", "-1", "0", "1e30", "1e300", str(10**30), "1_0", "", "x", "0x10", "1e-320"]


@pytest.mark.parametrize("name", NUMBERS)
def test_an_absurd_number_is_one_line_or_trains(pretrain, monkeypatch, tmp_path, name):
    """Up to the first update: as much as the start does with it, which is before anything long."""
    at_step(monkeypatch, 0, kill)
    upper = str(run_pretrain.build_parser()._option_string_actions[f"--{name}"].type.high)
    for i, value in enumerate([*ABSURD, upper.removesuffix(".0")]):
        with pytest.raises((UserError, Killed)) as ended:
            pretrain("--max_steps", "3", f"--{name}", value, output=tmp_path / f"{name}{i}")
            pytest.fail(f"{name} {value} trains nothing") if (name, value) != ("max_steps", "0") else kill()
        assert ended.type is Killed or "\\n" not in str(ended.value)  # a UserError escapes line ends


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_seq_length", "1000000"], r"[\d.]+ GB for the model and .*, and this machine has 1\.0 GB: take a"),
        (["--batch_size", "2000"], r"and 0\.2 GB for --batch_size 2000 are needed, or more, .*: lower --batch_size"),
    ],
)
def test_memory_that_is_certainly_missing_is_foreseen(pretrain, monkeypatch, arguments, message):
    monkeypatch.setattr(run_pretrain, "memory_of", lambda device: 10**9 if "--max_seq_length" in arguments else 10**7)
    monkeypatch.setattr(run_pretrain, "build_model", None)
    with pytest.raises(UserError, match=message):
        pretrain("--max_steps", "1", "--model_name_or_path", "roberta-en-tiny", *arguments)


@pytest.fixture
def least_memory(packed_data):
    """Of a run with these arguments: the bytes for the model and for a micro-batch."""

    def least_memory(*arguments: str, device: str = "cpu") -> tuple:
        arguments = [*training_arguments(packed_data, ROOT, "roberta-en-tiny"), *arguments]
        args = run_pretrain.parse_arguments(arguments)
        recipe = run_pretrain.choose_recipe(args)
        data = run_pretrain.load_data(args, recipe)
        config = run_pretrain.build_config(args, data.tokenizer, data.seq_length, recipe.dropout)
        machine = run_pretrain.Machine(device, "float32")
        return run_pretrain.least_memory(args, recipe, machine, data, config)

    return least_memory


def test_rows_of_several_lengths_are_foreseen_with_their_mean(ragged_data, least_memory):
    rows = datasets.load_from_disk(str(ragged_data))["train"]["input_ids"][:]
    tokens = sum(map(len, rows)) / len(rows)
    assert tokens < max(map(len, rows)) - 1
    _, for_batch = least_memory("--input_file", str(ragged_data), "--recipe", "roberta")
    assert for_batch == pytest.approx(2 * 8 * tokens * (2 * 512 + 0.15 * 400))


def test_muon_which_keeps_one_tensor_less_for_a_matrix_is_foreseen_with_less_memory(least_memory):
    matrices = 2 * (4 * 128 + 2 * 512) * 128
    assert least_memory("--optimizer", "adamw")[0] - least_memory("--optimizer", "muon")[0] == 4 * matrices


def test_an_evaluation_is_foreseen_with_less_memory_and_on_a_cpu_without_logits(least_memory):
    embeddings, matrices = (400 + 514) * 128, 2 * (4 * 128 + 2 * 512) * 128
    assert least_memory("--max_steps", "0") == (4 * (embeddings + matrices), 2 * 8 * 32 * 512)
    assert least_memory("--max_steps", "0", "--max_eval_rows", "3")[1] == 2 * 3 * 32 * 512
    for_model, for_batch = least_memory("--max_steps", "0", device="gpu")
    assert for_batch == pytest.approx(2 * 8 * 32 * (512 + 0.15 * 400))
    for_model, for_batch = least_memory("--optimizer", "adamw", "--recipe", "roberta")
    assert for_model == 16 * (embeddings + matrices)
    assert for_batch == pytest.approx(2 * 8 * 32 * (2 * 512 + 0.15 * 400))


@pytest.mark.parametrize("where", ["in Paddle", "in a backward pass"])
def test_memory_that_runs_out_is_one_line_that_says_what_takes_less(packed_data, tmp_path, where):
    """Paddle's own error, of a tensor that no machine can hold, and what it makes of ours."""
    change = {
        "in Paddle": "run_pretrain.masked_loss = lambda model, batch: paddle.empty([2**45])",
        "in a backward pass": "utils.add_rows = lambda *_: numpy.empty(2**45)",
    }
    arguments = [*training_arguments(packed_data, tmp_path / "ckp"), "--max_steps", "1"]
    process = run_changed(change[where], arguments)
    assert process.returncode == 2, process.stderr
    *paddles, error = process.stderr.splitlines()  # Paddle 3 has a line of its own to say of a backward pass
    assert len(paddles) <= (where == "in a backward pass") and "Traceback" not in process.stderr, process.stderr
    assert error.startswith("error: out of memory: halve --batch_size and double --gradient_accumulation_steps")


def test_a_mistake_in_a_backward_pass_is_a_traceback(packed_data, tmp_path):
    """Paddle makes an OSError of it, which is not the user's here."""
    arguments = [*training_arguments(packed_data, tmp_path / "ckp"), "--max_steps", "1"]
    process = run_changed("utils.add_rows = lambda *_: 1 / 0", arguments)
    assert process.returncode == 1 and "Traceback" in process.stderr and "ZeroDivisionError" in process.stderr


@pytest.mark.parametrize("content, expected", [("4000000\n", 4_000_000), ("max\n", None)])
def test_the_memory_of_a_container_is_what_it_may_use(monkeypatch, content, expected):
    def read_text(path):
        if path.name != "memory.max":
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(run_pretrain.Path, "read_text", read_text)
    assert run_pretrain.memory_of("cpu") == (expected or run_pretrain.psutil.virtual_memory().total)


def run_changed(change: str, arguments: list):
    """Runs the training script with a change made to it."""
    code = f"""
import numpy, run_pretrain, utils
import paddle
run_pretrain.ARCHITECTURES["{TINY}"] = (2, 32, 2)
{change}
utils.command_line(run_pretrain.main, run_pretrain.TAKES_LESS_MEMORY)
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


# ---------------------------------------------------------------- the refusals of a resumed run


def follow(message: str) -> list[str]:
    """The flags that a refusal names to go on from a checkpoint's weights in a new run."""
    return shlex.split(re.search(r"to go on from its weights in a new run: (--.*)", message)[1])


def test_more_epochs_are_refused_in_a_users_words_and_the_command_goes_on_from_the_weights(
    pretrain, tmp_path, capsys, packed_data, other_data
):
    output = pretrain("--max_steps", "2")
    for changed, arguments in (
        (
            "the number of updates (was 2, is 542: --max_steps 2 without --num_train_epochs gives the former)",
            ["--num_train_epochs", "2"],
        ),
        (
            f"the data of --input_file (was 2,175 rows of {packed_data}, 280 of validation, digest ",
            ["--max_steps", "2"],
        ),
    ):
        data = [] if "updates" in changed else ["--input_file", str(packed_data), str(packed_data)]
        with pytest.raises(UserError) as error:
            pretrain(*arguments, *RESUME, *data)
        message = str(error.value)
        assert changed in message and not re.search(r"[0-9a-f]{32}", message)
        capsys.readouterr()
        remedy = follow(message)
        assert remedy[-2:] == RESUME and "elsewhere" not in message
        run_pretrain.main([*training_arguments(packed_data, output), "--max_steps", "2", *data, *remedy])
        shown = capsys.readouterr().out
        assert f"continuing from {output / 'paddle_2'}" in shown
        assert f"done: {output}_2/paddle_2" in shown
        shutil.rmtree(f"{output}_2")
    undo = ["--max_steps", "2"]  # which the first message names
    pretrain(*undo, *RESUME)


def test_the_new_run_that_a_refusal_names_keeps_the_optimizer(pretrain):
    """A checkpoint that is continued would have RoBERTa's otherwise."""
    options = ["--recipe", "growing_rows", "--optimizer", "muon", "--learning_rate", "8e-3"]
    pretrain(*options, "--max_steps", "2")
    with pytest.raises(UserError) as error:
        pretrain(*options, "--max_steps", "4", *RESUME)
    expected = ["--optimizer", "muon", "--learning_rate", "0.008", "--weight_decay", "0.1", *RESUME]
    assert follow(str(error.value))[4:] == expected
    with pytest.raises(UserError) as error:  # what was changed is not named
        pretrain(*options[:-1], "7e-3", "--max_steps", "2", *RESUME)
    assert follow(str(error.value))[4:] == ["--optimizer", "muon", "--weight_decay", "0.1", *RESUME]


def test_settings_of_a_configuration_that_change_no_result_may_differ(pretrain, tmp_path):
    """As another version of transformers writes them."""
    start = pretrain("--max_steps", "1", output=tmp_path / "start") / "paddle_1"
    (start / "SHA256SUMS").unlink()
    arguments = ["--model_name_or_path", str(start), "--max_steps", "2", "--save_steps", "1"]
    output = pretrain(*arguments)
    shutil.rmtree(output / "paddle_2")
    config = json.loads((start / "config.json").read_text())
    changed = {"transformers_version": "5.23.0", "use_cache": True, "dtype": "float16"}
    assert all(config.get(name) != value for name, value in changed.items())
    (start / "config.json").write_text(json.dumps(config | changed))
    pretrain(*arguments, *RESUME)
    assert (output / "paddle_2").exists()


def test_a_best_checkpoint_is_chosen_anew_where_another_set_comes_first(pretrain, data, capsys):
    sets = {"validation_news": first_rows_of_training, "validation_law": first_rows_of_training}
    for order in (["validation_news", "validation_law"], ["validation_law", "validation_news"]):
        several = with_validation_sets(data, **{name: sets[name] for name in order})
        description = json.loads((several / "dataset_dict.json").read_text())
        description["splits"].remove("validation")
        (several / "dataset_dict.json").write_text(json.dumps(description))
        shutil.rmtree(several / "validation")
        several.rename(data.parent / order[0])
    output = pretrain("--max_steps", "6", "--save_steps", "2", data=data.parent / "validation_news")
    shutil.rmtree(output / "paddle_6")
    capsys.readouterr()
    pretrain("--max_steps", "6", "--save_steps", "2", *RESUME, data=data.parent / "validation_law")
    shown = capsys.readouterr().out
    assert "warning: the best checkpoint was chosen by validation_news, and is chosen anew, by validation_law" in shown


def test_an_evaluation_alone_says_how_much_of_what_it_evaluates(pretrain, packed_data, data, capsys):
    pretrain("--max_steps", "0", "--max_eval_rows", "20", "--input_file", str(packed_data), str(data))
    assert f"evaluating: 20 drawn of 560 rows of {packed_data} {data} together\n" in capsys.readouterr().out


def test_on_data_of_another_tokenizer_the_refusal_says_how_to_prepare_the_text(pretrain, corpus, tmp_path):
    output = pretrain("--max_steps", "2")
    (tmp_path / "other.txt").write_text(text_of_words(300, seed=1))
    other = create(tmp_path / "other.txt", tmp_path / "other")
    with pytest.raises(UserError, match="the tokenizer's files in --input_file") as error:
        pretrain("--max_steps", "2", *RESUME, data=other)
    message = str(error.value)
    given = re.search(r"undo them, or, prepare the text with --tokenizer_name (\S+), and to go on from", message)[1]
    prepared = create(corpus, tmp_path / "prepared", "--tokenizer_name", given)
    run_pretrain.main([*training_arguments(prepared, output), "--max_steps", "2", *follow(message)])
    assert (tmp_path / "ckp_2/paddle_2").exists()


def test_auto_that_finds_nothing_says_so(pretrain, capsys):
    output = pretrain("--max_steps", "1", *RESUME)
    assert f"--resume_from_checkpoint auto: no checkpoint in {output}, starting anew" in capsys.readouterr().out


def test_ranks_that_differ_are_refused_on_each_of_them(monkeypatch):
    """The comparison itself; test_distributed.py starts two processes."""
    monkeypatch.setenv("PADDLE_PG_TIMEOUT", "0")  # ends no process of pytest's
    args = run_pretrain.parse_arguments(["--seed", "1"])
    for change, named in (
        ({"precision": "float32"}, "different models or precisions"),
        ({"data.0.train": "other"}, "different data or tokenizers"),
        ({"tokenizer": "other"}, "different data or tokenizers"),
        ({"masking.whole_words": "other"}, "different rules of masking"),
    ):
        usual = {"precision": "bfloat16", "data.0.train": "x", "tokenizer": "y", "masking.whole_words": "z"}
        identities = [usual | c for c in ({}, change, {})]
        digests = []
        machine = run_pretrain.Machine("cpu", "float32", world_size=3)
        monkeypatch.setattr(run_pretrain, "sum_over_ranks", lambda x, to=digests: to.append(x.numpy()) or 3 * x)
        for identity in identities:
            run_pretrain.check_ranks_agree(args, machine, identity)  # all alike
        total = paddle.to_tensor(np.sum(digests, axis=0))
        monkeypatch.setattr(run_pretrain, "sum_over_ranks", lambda x, total=total: total)
        for identity in identities:
            with pytest.raises(UserError, match=named):
                run_pretrain.check_ranks_agree(args, machine, identity)


def test_a_card_that_names_no_sums_is_accepted(pretrain, data):
    """One of another version."""
    card = json.loads((data / "data_card.json").read_text())
    del card["files"]
    (data / "data_card.json").write_text(json.dumps(card))
    pretrain("--max_steps", "1", data=data)
