"""A checkpoint is worth what can be done with it: exported to and imported from transformers, fine-tuned, asked.

transformers and PyTorch live in an environment of their own; TORCH_PYTHON names its Python. The tests that compare
with them exchange arrays through files, and skip where there is none.
"""

import csv
import json
import os
import shutil
import subprocess

import numpy as np
import paddle
import pytest
import safetensors.numpy
from conftest import around_updates, run_script
from paddlenlp import transformers
from paddlenlp.data import DataCollatorWithPadding

import run_pretrain
import utils
from utils import UserError

TEXTS = [
    "a few words",
    "tabs\tand  spaces \r\n and lines",
    "naïve café Ångström e\u0301",
    "🙂👩\u200d👩\u200d👧 flags 🇩🇪",
    "עברית العربية",
    "中文，标点。日本語",
    "nul \x00 and \x1b control",
    "\ufeffmark",
    "x" * 300,
    "Fill the<mask> here",
]
IN_TRANSFORMERS = """
import json, sys
import numpy as np, torch, transformers
folder, arrays, answers = sys.argv[1:]
model, loading = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
inputs = np.load(arrays)
with torch.no_grad():
    logits = model.eval()(torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["attention_mask"])).logits
ids = [tokenizer(text)["input_ids"] for text in json.loads(str(inputs["texts"]))]
np.savez(answers, logits=logits.numpy(), ids=json.dumps(ids))
"""
NEW_IN_TRANSFORMERS = """
import sys
import torch, transformers
source, folder, tied = sys.argv[1:]
torch.manual_seed(0)
config = transformers.AutoConfig.from_pretrained(source, initializer_range=0.3, tie_word_embeddings=tied == "tied")
model = transformers.RobertaForMaskedLM(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
model.save_pretrained(folder)
transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
"""


@pytest.fixture
def torch_python() -> str:
    python = os.environ.get("TORCH_PYTHON")
    if not python:
        pytest.skip("TORCH_PYTHON names no Python with torch and transformers")
    return python


@pytest.fixture
def checkpoint(pretrain):
    return pretrain("--max_steps", "20", "--learning_rate", "1e-2") / "paddle_20"


@pytest.fixture
def exported(checkpoint, tmp_path):
    utils.main(["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "exported")])
    return tmp_path / "exported"


def padded_ids() -> tuple:
    """Ids int64 [4, 24] with rows padded from 24, 17, 3 and 20 tokens on, and which are no padding."""
    ids = np.random.default_rng(0).integers(4, 400, size=(4, 24))
    attention_mask = (np.arange(24) < [[24], [17], [3], [20]]).astype("int64")
    return np.where(attention_mask, ids, 1), attention_mask


def logits_in_paddle(model) -> np.ndarray:
    model.eval()
    return model(paddle.to_tensor(padded_ids()[0])).numpy()


def run_in(python: str, script: str, *arguments) -> None:
    run = subprocess.run([python, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def in_transformers(python: str, folder, tmp_path) -> tuple:
    """The logits and the ids of TEXTS that transformers computes with a directory."""
    ids, attention_mask = padded_ids()
    np.savez(tmp_path / "in.npz", ids=ids, attention_mask=attention_mask, texts=json.dumps(TEXTS))
    run_in(python, IN_TRANSFORMERS, folder, tmp_path / "in.npz", tmp_path / "out.npz")
    answers = np.load(tmp_path / "out.npz")
    return answers["logits"], json.loads(str(answers["ids"]))


def assert_equal_logits(one: np.ndarray, other: np.ndarray):
    """Where there is no padding; PaddleNLP computes something else at padded positions."""
    real = padded_ids()[1].astype(bool)
    assert one[real].std() > 0.1
    assert np.abs(one - other)[real].max() < 1e-4


# ---------------------------------------------------------------- to and from transformers


def test_transformers_loads_an_export_with_the_same_logits_and_ids(checkpoint, exported, torch_python, tmp_path):
    logits, ids = in_transformers(torch_python, exported, tmp_path)
    assert_equal_logits(logits, logits_in_paddle(transformers.RobertaForMaskedLM.from_pretrained(str(checkpoint))))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
    assert ids == [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_a_model_of_transformers_is_continued_and_exported_with_its_own_logits(
    exported, torch_python, ragged_data, tmp_path, pretrain, monkeypatch, tied
):
    folder, seen = tmp_path / "theirs", []
    run_in(torch_python, NEW_IN_TRANSFORMERS, exported, folder, tied)
    logits, _ = in_transformers(torch_python, folder, tmp_path)
    around_updates(monkeypatch, before=lambda run: seen.append(logits_in_paddle(run.model)))
    arguments = ("--max_steps", "1", "--learning_rate", "0", "--model_name_or_path", str(folder))
    output = pretrain(*arguments, data=ragged_data, output=tmp_path / "continued")
    assert_equal_logits(seen[0], logits)
    utils.main(["--checkpoint", str(output / "paddle_1"), "--output_dir", str(tmp_path / "back")])
    assert_equal_logits(in_transformers(torch_python, tmp_path / "back", tmp_path)[0], logits)


def test_an_export_read_back_is_the_same_model(checkpoint, exported, pretrain, tmp_path, capsys):
    config = transformers.RobertaConfig.from_pretrained(str(exported))
    back = run_pretrain.load_model(str(exported), config)[0].state_dict()
    weights = run_pretrain.load_model(str(checkpoint), config)[0].state_dict()
    assert len(weights) > 30
    assert all(np.array_equal(back[name].numpy(), weights[name].numpy()) for name in weights)
    pretrain("--max_steps", "1", "--model_name_or_path", str(exported), output=tmp_path / "continued")
    assert f"continuing from {exported}" in capsys.readouterr().out


def test_an_export_holds_every_weight_once_in_transformers_layout(checkpoint, exported):
    theirs = safetensors.numpy.load_file(exported / "model.safetensors")
    ours = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    name = "roberta.encoder.layers.1.linear1.weight"
    assert np.array_equal(theirs["roberta.encoder.layer.1.intermediate.dense.weight"], ours[name].T)
    assert np.array_equal(theirs["lm_head.dense.weight"], ours["lm_head.dense.weight"].T)
    assert {*theirs} == {*utils.to_transformers(ours)} - {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    assert not (exported / "training_state").exists()


def test_a_directory_of_transformers_with_another_tokenizer_is_refused(exported, pretrain, tmp_path):
    (exported / "vocab.json").unlink()  # as transformers 5 saves it
    tokenizer = json.loads((exported / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (exported / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="has another tokenizer, which does not suit"):
        pretrain("--max_steps", "1", "--model_name_or_path", str(exported), output=tmp_path / "never")


def test_an_untied_model_is_exported_with_its_decoder(exported, pretrain, tmp_path):
    change_config(exported, tie_word_embeddings=False)
    os.remove(exported / "model.safetensors")  # from scratch
    arguments = ("--max_steps", "3", "--learning_rate", "1e-2", "--model_name_or_path", str(exported))
    checkpoint = pretrain(*arguments, output=tmp_path / "untied") / "paddle_3"
    utils.main(["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "again")])
    theirs = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    ours = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    decoder, embeddings = "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"
    assert np.array_equal(theirs[decoder], ours[decoder]) and np.array_equal(theirs[embeddings], ours[embeddings])
    assert np.abs(ours[decoder] - ours[embeddings]).max() > 0.01
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False


# ---------------------------------------------------------------- directories of transformers


def change_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder, change) -> None:
    weights = change(safetensors.numpy.load_file(folder / "model.safetensors"))
    safetensors.numpy.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def in_half_precision(folder) -> None:
    change_weights(folder, lambda weights: {name: array.astype(np.float16) for name, array in weights.items()})


def in_bfloat16(folder) -> None:
    """The upper halves of float32; numpy has no such type, so the file is written by hand."""
    content = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    for tensor in (tensor for name, tensor in header.items() if name != "__metadata__"):
        tensor.update(dtype="BF16", data_offsets=[offset // 2 for offset in tensor["data_offsets"]])
    header, halves = json.dumps(header).encode(), (np.frombuffer(content[end:], "<u4") >> 16).astype("<u2")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())


def in_shards(folder) -> None:
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(weights)[i::2] for i in range(2)}
    for shard, names in shards.items():
        safetensors.numpy.save_file({name: weights[name] for name in names}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def padded_vocabulary(folder) -> None:
    """As published models have it, to a multiple of 64."""
    change_config(folder, vocab_size=448)
    more = {"roberta.embeddings.word_embeddings.weight", "lm_head.bias"}
    change_weights(
        folder,
        lambda weights: {
            name: np.pad(array, [(0, 48), *[(0, 0)] * (array.ndim - 1)]) if name in more else array
            for name, array in weights.items()
        },
    )


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [(in_half_precision, 2e-3), (padded_vocabulary, 1e-6)],
)
def test_other_forms_of_a_models_directory_are_the_same_model(
    exported, pretrain, tmp_path, monkeypatch, form, tolerance
):
    logits, runs = [], []
    around_updates(monkeypatch, before=lambda run: logits.append(logits_in_paddle(run.model)[..., :400]))
    for name in ("plain", "other"):
        arguments = ("--max_steps", "1", "--model_name_or_path", str(exported))
        runs.append(pretrain(*arguments, output=tmp_path / name))
        if name == "plain":
            form(exported)
    assert logits[0].std() > 0.1
    np.testing.assert_allclose(logits[1], logits[0], atol=tolerance)
    saved = safetensors.numpy.load_file(runs[1] / "paddle_1" / "model.safetensors")
    assert {array.dtype for array in saved.values()} == {np.dtype("float32")}


def as_pytorch_saves_it(folder) -> None:
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")


def without_a_head(folder) -> None:
    change_weights(folder, lambda weights: {name: a for name, a in weights.items() if not name.startswith("lm_head")})


def without_the_prefix_of_a_model_with_a_head(folder) -> None:
    change_weights(folder, lambda weights: {name.removeprefix("roberta."): array for name, array in weights.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_pytorch_saves_it, "has pytorch_model.bin: save it as one model.safetensors"),
        (without_a_head, "as in config.json ('lm_head"),
        (without_the_prefix_of_a_model_with_a_head, "as in config.json ('roberta.embeddings"),
        (
            lambda folder: change_config(folder, hidden_act="gelu_new"),
            "has hidden_act gelu_new, which does not suit",
        ),
        (lambda folder: change_config(folder, model_type="bert"), "has model_type bert, which does not suit"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load the model"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "cannot load the weights of"),
        (in_bfloat16, "data type 'bfloat16' not understood"),
        (in_shards, "as one model.safetensors"),
    ],
)
def test_a_directory_that_cannot_be_continued_is_named_with_the_cause(exported, pretrain, tmp_path, change, message):
    change(exported)
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "1", "--model_name_or_path", str(exported), output=tmp_path / "never")
    assert message in str(error.value) and str(exported) in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- exporting


def test_an_export_never_replaces_anything_and_names_what_is_wrong(checkpoint, exported, tmp_path, monkeypatch):
    before = (exported / "config.json").read_bytes()
    with monkeypatch.context() as elsewhere, pytest.raises(UserError, match="holds the working directory"):
        elsewhere.chdir(exported)
        utils.main(["--checkpoint", str(checkpoint), "--output_dir", ""])
    assert (exported / "config.json").read_bytes() == before
    again = run_script("utils.py", "--checkpoint", checkpoint, "--output_dir", exported)
    assert again.returncode == 2 and again.stderr == f"error: --output_dir {exported} exists: choose another\n"
    assert (exported / "config.json").read_bytes() == before
    missing = run_script("utils.py", "--checkpoint", tmp_path / "no", "--output_dir", tmp_path / "new")
    assert missing.returncode == 2 and "SHA256SUMS" in missing.stderr
    shutil.copytree(checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        utils.main(["--checkpoint", str(tmp_path / "damaged"), "--output_dir", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.slow
@pytest.mark.parametrize(("task", "texts"), [("SST-2", ["sentence"]), ("RTE", ["sentence1", "sentence2"])])
def test_a_checkpoint_is_fine_tuned_through_paddlenlps_api(pretrain, data_dir, task, texts):
    """As PaddleNLP's run_glue.py does it: the model and tokenizer of a checkpoint, real rows, a falling loss."""
    with open(data_dir / "glue" / task / "train.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:160]
    checkpoint = pretrain("--max_steps", "5", "--model_name_or_path", "roberta-en-tiny") / "paddle_5"
    names = sorted({row["label"] for row in rows})
    assert len(rows) == 160 and len(names) == 2
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
    paddle.seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(checkpoint), num_classes=2)
    model.eval()  # without dropout the loss says more
    examples = [
        {**tokenizer(*(row[text] for text in texts), max_length=64), "labels": names.index(row["label"])}
        for row in rows
    ]
    collate = DataCollatorWithPadding(tokenizer)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    losses = []
    for _epoch in range(10):
        losses.append([])
        for start in range(0, len(examples), 16):
            batch = collate(examples[start : start + 16])
            logits = model(batch["input_ids"])
            loss = paddle.nn.functional.cross_entropy(logits, batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses[-1].append(loss.item())
    assert np.mean(losses[-1]) < np.mean(losses[0]) - 0.1
