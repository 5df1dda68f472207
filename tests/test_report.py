"""What a run leaves to read: metrics.jsonl of one run, curves in VisualDL and curve.png, and no number that is none."""

import json
import math
import os
import shutil
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from conftest import (
    RESUME,
    ROOT,
    Killed,
    around_losses,
    around_updates,
    infinite_losses,
    kill,
    kill_in_update,
    metrics,
    training_arguments,
)

import run_pretrain
import utils
from utils import UserError


def lines_of(path) -> list:
    """All records of a metrics.jsonl, in the order of the file; each line must be one."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept(output) -> list:
    """The names in an output directory but its checkpoints."""
    return sorted(path.name for path in output.iterdir() if not path.name.startswith(("paddle_", ".")))


@pytest.mark.draws
def test_a_new_run_begins_a_new_file_and_keeps_that_of_a_run_without_a_checkpoint(pretrain, monkeypatch, tmp_path):
    """A run killed before its first checkpoint, twice; then one with other settings."""
    for i, rate in enumerate(("1e-3", "2e-3")):
        with monkeypatch.context() as patch:
            kill_in_update(pretrain, patch, 3 + i, "--max_steps", "9", "--learning_rate", rate)
    output = pretrain("--max_steps", "2", "--learning_rate", "3e-3", *RESUME)
    names = ["metrics.jsonl", "metrics.jsonl.1", "metrics.jsonl.2"]
    runs = {name: [r for r in lines_of(output / name) if r["event"] == "train"] for name in names}
    assert [[r["step"] for r in runs[name]] for name in names] == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    rates = [{r["learning_rate"] for r in runs[name] if r["step"] == 1} for name in names]
    assert rates == [{3e-3}, {1e-3}, {2e-3}]
    assert kept(output) == ["curve.png", *names, "visualdl", "visualdl.1", "visualdl.2"]
    assert [path.name for path in (output / "visualdl").iterdir()] == ["from_0"]
    assert len(list((output / "visualdl/from_0").iterdir())) == 1


@pytest.mark.parametrize("given", ["auto", "{output}/paddle_4", "{output}/../ckp//paddle_4/"])
def test_a_resumed_run_cuts_the_file_to_its_step(pretrain, monkeypatch, tmp_path, given):
    arguments = ["--max_steps", "8", "--save_steps", "4"]
    whole = pretrain(*arguments, output=tmp_path / "whole")
    kill_in_update(pretrain, monkeypatch, 7, *arguments)
    output = tmp_path / "ckp"
    assert [r["step"] for r in lines_of(output / "metrics.jsonl") if r["event"] == "train"] == [1, 2, 3, 4, 5, 6, 7]
    pretrain(*arguments, "--resume_from_checkpoint", given.format(output=output))
    records = lines_of(output / "metrics.jsonl")
    of_whole = lines_of(whole / "metrics.jsonl")
    assert [(r["event"], r["step"]) for r in records] == [(r["event"], r["step"]) for r in of_whole]
    assert [r.get("loss", r.get("eval_loss")) for r in records] == [r.get("loss", r.get("eval_loss")) for r in of_whole]
    assert not (output / "metrics.jsonl.1").exists()


def test_each_start_of_a_resumed_run_has_its_own_visualdl_file(pretrain, monkeypatch, tmp_path):
    arguments = ["--max_steps", "8", "--save_steps", "4"]
    for step in (6, 7):  # both go on from step 4, or begin before it
        with monkeypatch.context() as patch:
            kill_in_update(pretrain, patch, step, *arguments, *RESUME)
    output = pretrain(*arguments, *RESUME)
    folders = sorted(path.name for path in (output / "visualdl").iterdir())
    assert folders == ["from_0", "from_4", "from_4.1"]
    assert all(len(list((output / "visualdl" / folder).iterdir())) == 1 for folder in folders)


def test_a_checkpoint_of_another_directory_does_not_go_on_with_the_metrics_that_lie_here(
    pretrain, monkeypatch, tmp_path
):
    first = pretrain("--max_steps", "4", "--save_steps", "2", output=tmp_path / "first")
    kill_in_update(pretrain, monkeypatch, 3, "--max_steps", "9")  # leaves metrics, and no checkpoint
    output = pretrain("--max_steps", "4", "--resume_from_checkpoint", str(first / "paddle_2"))
    assert [r["step"] for r in lines_of(output / "metrics.jsonl") if r["event"] == "train"] == [3, 4]
    assert [r["step"] for r in lines_of(output / "metrics.jsonl.1")] == [1, 2, 3]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_line_that_a_kill_cut_off_is_not_glued_to_the_next_one(pretrain, resumed):
    arguments = ["--max_steps", "4", "--save_steps", "2"]
    output = pretrain(*arguments)
    shutil.rmtree(output / "paddle_4")
    path = output / "metrics.jsonl"
    whole = path.read_text()
    os.truncate(path, len(whole) - 30)
    assert not path.read_text().endswith("\n")
    if resumed:
        pretrain(*arguments, *RESUME)
        assert [r["step"] for r in lines_of(path)] == [1, 2, 2, 3, 4, 4]
    else:
        pretrain("--max_steps", "0", "--model_name_or_path", str(output / "paddle_2"))
        records = lines_of(path)
        assert [(r["event"], r["step"]) for r in records[-2:]] == [("train", 4), ("evaluation", 0)]
        assert records[-1]["model"] == str(output / "paddle_2")


@pytest.mark.draws
def test_an_evaluation_alone_stands_in_a_runs_file_and_not_in_its_curve(pretrain, monkeypatch):
    output = pretrain("--max_steps", "2", "--save_steps", "1")
    for step in (1, 2):
        pretrain("--max_steps", "0", "--model_name_or_path", str(output / f"paddle_{step}"))
    records = lines_of(output / "metrics.jsonl")
    assert [r["model"] for r in records[-2:]] == [str(output / f"paddle_{step}") for step in (1, 2)]
    drawn, real = [], utils.numbers
    monkeypatch.setattr(utils, "numbers", lambda records, key: drawn.append((len(records), key)) or real(records, key))
    utils.draw_curve(records, str(output / "again.png"))
    assert drawn == [(2, "loss"), (2, "eval_loss"), (2, "learning_rate")]


def test_a_file_that_is_no_runs_metrics_is_named_and_left_as_it_is(pretrain):
    output = pretrain("--max_steps", "2", "--save_steps", "1")
    (output / "metrics.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: no metrics of a run: move it elsewhere"):
        pretrain("--max_steps", "2", *RESUME)
    assert (output / "metrics.jsonl").read_text() == "mine\n"
    (output / "metrics.jsonl").rename(output / "elsewhere")
    pretrain("--max_steps", "2", *RESUME)


# ---------------------------------------------------------------- the curve


def is_drawn(path) -> bool:
    """Whether an image is of some size and holds lines and text in several colours, on white."""
    image = matplotlib.image.imread(path)[..., :3]
    colours = np.unique((image.reshape(-1, 3) * 255).astype(int), axis=0)
    share_of_white = (image == 1).all(axis=-1).mean()
    return image.shape[0] > 300 and image.shape[1] > 300 and len(colours) > 100 and 0.5 < share_of_white < 0.99


@pytest.mark.draws
@pytest.mark.parametrize(
    ("line", "warned"), [("", False), ("by hand", True), ('{"event": "train", "step": "3"}', True)]
)
def test_a_line_of_somebody_elses_in_the_metrics_ends_no_training(pretrain, monkeypatch, capsys, line, warned):
    def add_line(run, result):
        if run.progress.global_step == 3:
            with open(f"{run.args.output_dir}/metrics.jsonl", "a") as file:
                file.write(f"{line}\n")

    around_updates(monkeypatch, after=add_line)
    output = pretrain("--max_steps", "4", "--save_steps", "2")
    assert (output / "paddle_4").exists()
    assert ("warning: no curve is drawn: " in capsys.readouterr().out) is warned
    if warned:
        with pytest.raises(UserError, match=r"metrics\.jsonl: no metrics of a run: move it elsewhere"):
            pretrain("--max_steps", "4", "--save_steps", "2", *RESUME)


@pytest.mark.draws
def test_the_curve_is_drawn_anew_at_each_evaluation(pretrain, monkeypatch):
    images, real = [], run_pretrain.Report.log_evaluations

    def log_evaluations(report, run, evaluations):
        real(report, run, evaluations)
        path = os.path.join(report.output_dir, "curve.png")
        assert is_drawn(path)
        with open(path, "rb") as file:
            images.append(file.read())

    monkeypatch.setattr(run_pretrain.Report, "log_evaluations", log_evaluations)
    pretrain("--max_steps", "6", "--save_steps", "2")
    assert len(images) == len(set(images)) == 3


def test_a_blank_image_would_not_pass_as_drawn(tmp_path):
    matplotlib.image.imsave(tmp_path / "blank.png", np.ones((600, 800, 3)))
    assert not is_drawn(tmp_path / "blank.png")


def test_the_curve_has_a_line_for_each_validation_set_and_gaps_where_there_is_no_number(monkeypatch, tmp_path):
    import matplotlib.axes

    plotted, real = {}, matplotlib.axes.Axes.plot

    def plot(axes, steps, values, **options):
        plotted[options.get("label", "rate")] = list(zip(steps, values))
        return real(axes, steps, values, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot)
    training = [{"event": "train", "step": s, "loss": loss, "learning_rate": 1e-3} for s, loss in ((1, 5), (2, None))]
    german = {"validation_german": {"eval_loss": 7.0}}
    yardsticks, real_line = [], matplotlib.axes.Axes.axhline
    monkeypatch.setattr(
        matplotlib.axes.Axes, "axhline", lambda axes, y, **how: yardsticks.append(y) or real_line(axes, y, **how)
    )
    evaluations = [
        {"event": "evaluation", "step": 1, "eval_loss": 4.0},
        {"event": "evaluation", "step": 2, "eval_loss": 3.0, "unigram_entropy": 5.0, "loss_without_context": 4.5}
        | german,
    ]
    utils.draw_curve([*training, *evaluations], str(tmp_path / "curve.png"))
    assert is_drawn(tmp_path / "curve.png")
    assert sorted(yardsticks) == [4.5, 5.0]
    assert plotted["loss on validation"] == [(1, 4.0), (2, 3.0)]
    (first, gap), second = plotted["loss on validation_german"]
    assert first == 1 and math.isnan(gap) and second == (2, 7.0)
    assert plotted["training loss"][0] == (1, 5) and math.isnan(plotted["training loss"][1][1])


# ---------------------------------------------------------------- numbers that are none


def test_a_window_without_a_loss_says_why_and_never_nan(pretrain, monkeypatch, capsys, tmp_path):
    with monkeypatch.context() as patch:
        infinite_losses(patch, {0})
        output = pretrain("--max_steps", "2")
    shown = capsys.readouterr().out
    assert "step 1/2  loss none: all skipped  rate" in shown and "loss nan" not in shown
    assert [record["loss"] is None for record in metrics(output, "train")] == [True, False]
    pretrain("--max_steps", "1", "--mlm_probability", "1e-9", output=tmp_path / "none")
    shown = capsys.readouterr().out
    assert "step 1/1  loss none: no token was masked  rate" in shown and "loss nan" not in shown


def test_logging_steps_beyond_the_end_are_said(pretrain, capsys):
    pretrain("--max_steps", "3", "--logging_steps", "4")
    assert "--logging_steps 4: more than there are updates" in capsys.readouterr().out


def test_a_run_that_fails_at_its_start_leaves_the_earlier_ones_files_in_their_places(pretrain, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        kill_in_update(pretrain, patch, 2, "--max_steps", "9")
    before = (tmp_path / "ckp/metrics.jsonl").read_text()
    monkeypatch.setattr(run_pretrain, "build_optimizer", lambda *arguments: kill())
    with pytest.raises(Killed):
        pretrain("--max_steps", "9")
    assert (tmp_path / "ckp/metrics.jsonl").read_text() == before and before.count("\n") == 2


def test_losses_are_finite_numbers_of_the_updates_they_are_of(pretrain, monkeypatch):
    """A report's loss is the mean over the masked tokens of the updates since the last one."""
    sums, counts = [], []
    around_updates(monkeypatch, after=lambda run, result: sums.append(result["loss_sum"]))
    around_losses(
        monkeypatch,
        before=lambda model, batch: counts.append(int((batch["labels"] != -100).sum())) if model.training else None,
    )
    output = pretrain("--max_steps", "6", "--logging_steps", "3", "--save_steps", "4")
    losses = [record["loss"] for record in metrics(output, "train")]
    assert losses == pytest.approx([sum(sums[i : i + 3]) / sum(counts[i : i + 3]) for i in (0, 3)], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]], ids=str)
def test_a_run_whose_output_is_closed_trains_all_the_same(packed_data, tmp_path, closed):
    """Closed, as by `>&-`: no pipe without a reader."""
    arguments = [*training_arguments(packed_data, tmp_path / "ckp", "roberta-en-tiny"), "--max_steps", "2"]
    shell = " ".join(f"{number}>&-" for number in closed)
    command = ["bash", "-c", f'exec "$@" {shell}', "bash", sys.executable, "run_pretrain.py", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(metrics(tmp_path / "ckp", "train")) == 2 and "Traceback" not in run.stdout + run.stderr
    utils.check_checksums(str(tmp_path / "ckp/paddle_2"))
    wrong = subprocess.run([*command, "--seed", "x"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    if closed == [2]:
        assert "error: argument --seed" in wrong.stdout


def test_several_runs_are_drawn_side_by_side(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    import matplotlib.axes
    import plot_run

    drawn, real = {}, matplotlib.axes.Axes.plot

    def plot(axes, x, y, **how):
        drawn[how["label"]] = list(zip(x, y))
        return real(axes, x, y, **how)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot)
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("one", "other")]
    for path, loss in zip(paths, (5.0, 4.0)):
        records = [{"event": "train", "step": step, "loss": loss / step} for step in (1, 2)]
        records += [{"event": "evaluation", "step": step, "eval_loss": loss - step} for step in (2, 0)]  # 0: alone
        (tmp_path / path).write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_run.main(["--metrics", *paths, "--output", str(tmp_path / "curves.png")])
    assert is_drawn(tmp_path / "curves.png")
    assert drawn[f"{paths[1]}, training"] == [(1, 4.0), (2, 2.0)] and drawn[f"{paths[1]}, evaluation"] == [(2, 2.0)]


def test_perplexities_of_a_run_and_of_its_peers_stand_beside_their_own_minutes(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    import plot_minutes

    records = []
    for reported, evaluated, loss in ((200, 200, 5.5), (600, 300, 5.0), (900, 900, 4.0), (1800, 1800, 3.0)):
        records.append({"event": "evaluation", "step": evaluated, "eval_loss": loss, "loss_without_context": 6.5})
        records.append({"event": "train", "step": reported, "steps_per_second": 1.0})
    records.append({"event": "evaluation", "step": 0, "eval_loss": 9.0})  # by --max_steps 0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, seconds in (("compiled", 2.0), ("huggingface", 4.0)):  # the same 900 updates take 30 and 60 minutes
        losses = {"updates": [0, 450, 900], name: [7.0, 6.0, 5.5]}
        peer = {"evaluation_losses": losses, "seconds_per_update": {name: {"median": seconds}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(peer))
    paths = [str(tmp_path / name) for name in ("metrics.jsonl", "compiled.json", "huggingface.json", "minutes.png")]
    run, compiled, huggingface, figure = paths
    plot_minutes.main(["--metrics", run, run, "--peer", compiled, huggingface, "--output", figure])

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    expected = {
        "this project, beside PyTorch, compiled": [5.0, 4.0, 3.0, None, "20.1 (30 minutes)"],
        "PyTorch, compiled": [20 / 3, 6.0, 5.5, None, "244.7 (30 minutes)"],
        "this project, beside Hugging Face": [5.0, 4.0, 3.0, None, "20.1 (30 minutes)"],
        "Hugging Face": [41 / 6, 6.5, 6.0, 5.5, "244.7 (60 minutes)"],
    }
    assert rows == [
        [name, *("" if loss is None else f"{math.exp(loss):,.1f}" for loss in losses), end]
        for name, (*losses, end) in expected.items()
    ]
    with pytest.raises(UserError, match="one --peer for each of --metrics"):
        plot_minutes.main(["--metrics", run, run, "--peer", compiled, "--output", figure])
    assert is_drawn(tmp_path / "minutes.png")


@pytest.mark.parametrize(("loss", "shown"), [(3.4828, "32.55"), (13.8, "984609.11"), (700.0, "1.0e+304")])
def test_a_perplexity_is_short_also_where_a_run_has_diverged(loss, shown):
    evaluation = {"eval_loss": loss, "perplexity": math.exp(loss)}
    assert run_pretrain.loss_and_perplexity(evaluation) == f"loss {loss:.4f}, perplexity {shown}"
