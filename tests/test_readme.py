"""Every command of the README is one that the scripts understand, and the files that it names exist."""

import json
import re
import shlex
import sys

import pytest
from conftest import ROOT

import create_data
from utils import UserError

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def arguments_of(script: str) -> list:
    """The arguments of each command with this script."""
    pattern = rf"(?<!\w){re.escape(script)} ([^;]*)"
    return [shlex.split(match[1]) for match in (re.search(pattern, command) for command in COMMANDS) if match]


def test_every_command_is_of_a_kind_that_is_checked():
    assert len(COMMANDS) > 10
    scripts = r"-m paddle\.distributed\.launch|create_data\.py|run_pretrain\.py|utils\.py|tests/|-u PaddleNLP/"
    for command in COMMANDS:
        assert re.match(rf"(until )?python ({scripts})|pip |pytest |rm |git ", command), command


@pytest.mark.parametrize("arguments", arguments_of("create_data.py"), ids=" ".join)
def test_create_data_commands_parse(arguments):
    create_data.parse_arguments(arguments)


@pytest.mark.parametrize("arguments", arguments_of("run_pretrain.py"), ids=" ".join)
def test_run_pretrain_commands_parse(arguments):
    import run_pretrain

    run_pretrain.parse_arguments(arguments)


def test_utils_and_figure_commands_parse(monkeypatch, tmp_path):
    """They end where they look for the files, which is after their arguments."""
    monkeypatch.chdir(tmp_path)
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    import plot_run

    import utils

    for module, script in ((utils, "utils.py"), (plot_run, "tests/benchmarks/plot_run.py")):
        assert arguments_of(script)
        for arguments in arguments_of(script):
            with pytest.raises(utils.UserError, match=r"--(checkpoint|metrics) demo_ckp"):
                module.main(arguments)


def test_fine_tuning_figures_are_the_last_evaluations(monkeypatch, tmp_path, capsys):
    """bench_glue.py around a stand-in for run_glue.py, whose accuracy depends on the model and the seed."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    import bench_glue

    (arguments,) = arguments_of("tests/benchmarks/bench_glue.py")
    assert bench_glue.parse_arguments(arguments).tasks == ["SST-2", "RTE"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run_glue.py").write_text(
        "import sys\n"
        "flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "name, seed = flags['--model_name_or_path'], int(flags['--seed'])\n"
        "print('eval loss: 0.9, acc: 0.1, eval done total : 1 s')\n"
        "print(f'eval loss: 0.5, acc: {(len(name) + seed) / 100}, eval done total : 1 s')\n"
    )
    for name in ("long_name", "x1", "x2"):
        (tmp_path / name).mkdir()
    arguments = "--run_glue run_glue.py --models a=long_name b=x{seed} --tasks RTE --max_steps 3 --seeds 1 2".split()
    bench_glue.main([*arguments, "--output", "glue.json"])
    results = json.loads((tmp_path / "glue.json").read_text())["results"]["RTE"]
    assert results["a"]["accuracies"] == pytest.approx([10, 11])
    assert results["b"]["mean"] == pytest.approx(3.5)
    assert results["b"]["standard_deviation"] == pytest.approx(0.5**0.5)
    assert "RTE, a: 10.5 +- 0.7" in capsys.readouterr().out
    with pytest.raises(UserError, match="no directory x3"):
        bench_glue.main([*arguments, "3", "--output", "glue.json"])


def test_every_flag_that_is_named_exists():
    import run_pretrain

    known = {*vars(create_data.parse_arguments([])), *vars(run_pretrain.parse_arguments([]))}
    others = {
        "data_file",
        "tokenizer_dir",
        "gpus",
        "nproc_per_node",
        "nnodes",
        "master",
        "max_restart",
        "logdir",
        "help",
        "checkpoint",
        "metrics",
        *("model", "torch_python", "peers"),  # of bench_train.py
        "output",
        *("run_glue", "models", "tasks", "seeds"),  # of bench_glue.py
        *("model_type", "task_name", "tokenizer_name_or_path"),  # of PaddleNLP's run_glue.py
    }
    named = set(re.findall(r"--([a-z_]+)", README))
    assert len(named) > 20
    assert named <= known | others


def test_the_top_level_is_the_fixed_one():
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top == {"README.md", "create_data.py", "run_pretrain.py", "utils.py", "requirements.txt", "tests", "LICENSE"}
