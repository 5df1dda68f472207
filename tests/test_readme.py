"""What the READMEs say: commands that the scripts understand, flags and files that exist, changes that can be made."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version

import numpy as np
import paddle
import pytest
from conftest import ROOT, run_script, training_arguments
from paddlenlp.transformers import RobertaConfig, RobertaForSequenceClassification
from safetensors.numpy import load_file

import create_data
from utils import UserError

README = (ROOT / "README.md").read_text()
TEXTS = README + (ROOT / "tests/benchmarks/README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXTS, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in re.sub(r"\\\n\s*", "", block).splitlines()]
# And those that stand within a sentence, whole.
INLINE = re.findall(r"`(python (?:create_data|run_pretrain)\.py [^`]*[^`.])`", TEXTS)
COMMANDS += [" ".join(command.split()) for command in INLINE]
# All but plot_run, whose command stands within a sentence: test_utils_and_figure_commands_parse() takes it from there.
BENCHMARKS = sorted({path.stem for path in (ROOT / "tests/benchmarks").glob("*.py")} - {"plot_run"})
SCRIPTS = ("create_data.py", "run_pretrain.py", "utils.py")

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))


def arguments_of(script: str) -> list:
    """The arguments of each command with this script."""
    pattern = rf"(?<!\w){re.escape(script)} ([^;]*)"
    return [shlex.split(match[1]) for match in (re.search(pattern, command) for command in COMMANDS) if match]


def test_every_command_is_of_a_kind_that_is_checked():
    assert len(COMMANDS) > 10 and len(INLINE) >= 2
    scripts = r"-m paddle\.distributed\.launch|create_data\.py|run_pretrain\.py|utils\.py|tests/|-u PaddleNLP/|-c "
    others = r"python3 -m venv |pip |rm |git |pytest tests$|grep -v '\^paddlepaddle' requirements\.txt > "
    for command in COMMANDS:
        assert re.match(rf"(until )?python ({scripts})|{others}", command), command


@pytest.mark.parametrize("arguments", arguments_of("create_data.py"), ids=" ".join)
def test_create_data_commands_parse(arguments):
    create_data.parse_arguments(arguments)


@pytest.mark.parametrize("arguments", arguments_of("run_pretrain.py"), ids=" ".join)
def test_run_pretrain_commands_parse(arguments):
    import run_pretrain

    run_pretrain.parse_arguments(arguments)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_has_a_command_and_it_parses(name):
    module, commands = __import__(name), arguments_of(f"tests/benchmarks/{name}.py")
    assert commands, f"no README says how to run {name}.py"
    for arguments in commands:
        module.parse_arguments(arguments)


def test_utils_and_figure_commands_parse(monkeypatch, tmp_path):
    """They end where they look for the files, which is after their arguments."""
    monkeypatch.chdir(tmp_path)
    import plot_run

    import utils

    [figure] = re.findall(r"python tests/benchmarks/plot_run.py (.*?)`", README)
    for module, commands in ((utils, arguments_of("utils.py")), (plot_run, [figure.split()])):
        assert commands
        for arguments in commands:
            with pytest.raises(UserError, match=r"demo_ckp|one/metrics\.jsonl"):
                module.main(arguments)


def test_visualdl_answers_a_browser_of_any_language(tmp_path):
    [options] = re.findall(r"`visualdl --logdir ckp/visualdl (.*?)`", README)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from visualdl.server.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--logdir", str(tmp_path), *options.split(), "--port", str(port)]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--disable-telemetry"], start_new_session=True)
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Accept-Language": "fr"})
        for _ in range(300):
            try:
                assert urllib.request.urlopen(request).status == 200
                break
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:  # not yet there
                assert server.poll() is None
                time.sleep(0.1)
        else:
            pytest.fail("the server does not answer")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_numpy_is_one_that_paddles_scaler_can_use():
    """GradScaler calls float() on a tensor of shape [1] (test_gpu.py drives it), which numpy 2.4 refuses."""
    [bound] = re.findall(r"^numpy(\S+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert bound == "<2.4" and tuple(map(int, version("numpy").split(".")[:2])) < (2, 4)


@pytest.mark.slow
def test_a_timed_update_is_the_scripts_own(tmp_path):
    """bench_train.py, whose worker drives run_pretrain.py by its names, beside a peer that needs no PyTorch."""
    output = tmp_path / "train.json"
    sizes = "--model roberta-en-tiny --max_seq_length 16 --batch_size 2 --vocab_size 512 --pairs 1".split()
    process = run_script("tests/benchmarks/bench_train.py", *sizes, "--peers", "original", "--output", output)
    assert process.returncode == 0, process.stdout + process.stderr
    results = json.loads(output.read_text())
    assert set(results["contestants"]) == {"ours", "original"} and set(results["times_as_fast"]) == {"original"}
    losses = [step["loss"] for step in results["contestants"]["ours"]["steps"]]
    assert losses and all(5 < loss < 8 for loss in losses)  # log 512 = 6.2


def test_fine_tuning_figures_are_the_last_evaluations(monkeypatch, tmp_path, capsys):
    """bench_glue.py around a stand-in for PaddleNLP's run_glue.py, which is not in its package."""
    import bench_glue

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


def test_fine_tuning_with_the_cpus_layers_gives_the_same_logits(tmp_path):
    """Of rows that are padded, as run_glue.py's are; in bfloat16 where the processor has it."""
    import bench_glue

    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(**sizes, intermediate_size=64, pad_token_id=1, initializer_range=0.2)
    paddle.seed(0)
    model = RobertaForSequenceClassification(config)
    model.eval()
    model.save_pretrained(str(tmp_path / "model"), safe_serialization=True)
    rows = [[0, *range(5, 25), 2], [0, *range(30, 35), 2, *[1] * 15]]
    (tmp_path / "script.py").write_text(
        "import json, sys, paddle\n"
        "from paddlenlp.transformers import AutoModelForSequenceClassification\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "model.eval()\n"
        f"logits = model(paddle.to_tensor({rows})).tolist()\n"
        "print(json.dumps([logits, type(model.classifier.dense).__module__]))\n"
    )
    command = [sys.executable, "-c", bench_glue.RUN_WITH_FAST_LAYERS, tmp_path / "script.py", tmp_path / "model"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits, module = json.loads(done.stdout.splitlines()[-1])
    expected = model(paddle.to_tensor(rows)).numpy()
    assert module == "run_pretrain" and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=0.06 * np.abs(expected).max())  # bfloat16, large weights


def test_every_flag_that_is_named_exists():
    import run_pretrain

    known = {*vars(create_data.parse_arguments([])), *vars(run_pretrain.parse_arguments([]))}
    others = "gpus nproc_per_node nnodes master logdir language help checkpoint metrics output checkout "
    others += "repo-type include local-dir data_file tokenizer_dir run_glue models tasks seeds quality precision peers "
    others += "model torch_python updates pairs processes model_type task_name tokenizer_name_or_path adam_beta2 "
    others += "large_file rounds json onnx peer peers_alone evaluate_every speed marks threads log_dir"
    named = set(re.findall(r"--([a-z_-]+[a-z0-9])", TEXTS))
    assert len(named) > 40
    assert named <= known | set(others.split())


def test_every_file_that_is_linked_or_named_exists():
    named = set(re.findall(r"\]\((?!http|#)([^)#]+)", README)) | set(re.findall(r"tests/benchmarks/\w+\.py", TEXTS))
    assert len(named) > 3
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "tests/benchmarks/README.md"])
def test_every_link_within_the_pages_leads_somewhere(page):
    text, links = (ROOT / page).read_text(), 0
    for path, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        links += 1
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, anchor
    assert links > 5


def test_the_tests_page_names_each_file_and_only_tests_that_there_are():
    page = (ROOT / "tests/README.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    assert set(re.findall(r"^\| `(test_\w+\.py)` \|", page, flags=re.MULTILINE)) == set(files)
    tests = set(re.findall(r"^def (test_\w+)", "\n".join(files.values()), flags=re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 40 and named <= tests, named - tests


def changed(sources: dict) -> dict:
    """The scripts' lines with the README's changes made, which are written as in a diff."""
    [block] = re.findall(r"```diff\n(.*?)```", README, flags=re.DOTALL)
    lines, place = [], 0
    for line in block.splitlines():
        mark, text = line[0], line[1:]
        if text.startswith("# "):
            lines = sources[re.search(r"\((\w+\.py)\)", text)[1]]
        elif mark == "+":
            lines.insert(place, text)
            place += 1
        else:
            assert lines.count(text) == 1, text
            place = lines.index(text) + (mark == " ")
            if mark == "-":
                lines.remove(text)
    return sources


@pytest.mark.slow
def test_what_the_readme_says_can_be_changed_can_be_changed(tmp_path):
    for name, lines in changed({name: (ROOT / name).read_text().splitlines() for name in SCRIPTS}).items():
        assert lines != (ROOT / name).read_text().splitlines()
        text = "\n".join(lines).replace("(8, 512, 8)", "(2, 64, 2)")  # the new architecture, small: it is trained
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.md").write_text(
        "".join(f"Paragraph {i} of the notes, with a few words.\n\n" for i in range(400))
    )
    options = "--tokenizer_name train --vocab_size 300 --max_seq_length 32 --validation_split_percentage 10"
    options = ["--data_files", "notes.md", "--output_dir", "data", *options.split()]
    run = {"cwd": tmp_path, "capture_output": True, "text": True}
    made = subprocess.run([sys.executable, "create_data.py", *options], **run)
    assert made.returncode == 0, made.stderr
    options = (
        "--max_steps 4 --lr_scheduler constant_with_warmup --warmup_steps 1 --adam_beta2 0.9 --mlm_probability 0.4"
    )
    options = [*training_arguments(tmp_path / "data", tmp_path / "ckp", "roberta-en-medium"), *options.split()]
    trained = subprocess.run([sys.executable, "run_pretrain.py", *options, "--save_steps", "2"], **run)
    assert trained.returncode == 0, trained.stderr
    weights = (tmp_path / "ckp/paddle_4/model.safetensors").read_bytes()
    earlier, later = (load_file(tmp_path / f"ckp/paddle_{step}/model.safetensors") for step in (2, 4))
    changed_weights = {name for name, array in later.items() if not np.array_equal(array, earlier[name])}
    embeddings = {name for name in later if name.startswith("roberta.embeddings.") or name == "lm_head.decoder.weight"}
    assert changed_weights and not changed_weights & embeddings
    shutil.rmtree(tmp_path / "ckp/paddle_4")
    resumed = subprocess.run([sys.executable, "run_pretrain.py", *options, "--resume_from_checkpoint", "auto"], **run)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "ckp/paddle_4/model.safetensors").read_bytes() == weights
    moments = load_file(tmp_path / "ckp/paddle_4/training_state/optimizer.safetensors")
    assert any(name.endswith("/moment2") and array.any() for name, array in moments.items())
    rates = [json.loads(line) for line in (tmp_path / "ckp/metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in rates if record["event"] == "train"]
    assert rates == pytest.approx([rates[0] * step**-0.5 for step in (1, 2, 3, 4)])
    config = json.loads((tmp_path / "ckp/paddle_4/config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (2, 64)
    shutil.rmtree(tmp_path / "ckp")


def test_the_top_level_is_the_fixed_one():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    fixed = {"README.md", "create_data.py", "run_pretrain.py", "utils.py", "requirements.txt", "tests", "LICENSE"}
    assert top == {*fixed, "findings"}
