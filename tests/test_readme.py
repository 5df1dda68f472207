"""Every command of the README is one that the scripts understand, and the files that it names exist."""

import re
import shlex
import sys

import pytest
from conftest import ROOT

import create_data

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
