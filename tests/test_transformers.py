"""A checkpoint is worth what can be done with it: exported to and imported from transformers, fine-tuned, asked.

transformers and PyTorch live in environments of their own; TORCH_PYTHON names the Python of one with transformers 5,
and for ONNX and ctranslate2 with onnxruntime and ctranslate2, TORCH4_PYTHON one with transformers 4. The tests that
compare with them exchange arrays through files, and skip where there is none.
"""

import contextlib
import csv
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import paddle
import pytest
import safetensors.numpy
from conftest import ROOT, TINY, around_updates, run_script, training_arguments
from paddlenlp import transformers
from paddlenlp.data import DataCollatorWithPadding
from tokenizers import Tokenizer

import create_data
import run_pretrain
import utils
from utils import UserError

TEXTS = [  # in more than ten scripts
    "a few words",
    "tabs\tand  spaces \r\n and lines",
    "naïve café Ångström e\u0301",
    "Der Fluß trägt müde Boote",
    "Ελληνικά γράμματα και τόνοι",
    "Русский язык использует кириллицу",
    "עברית נכתבת מימין לשמאל",
    "اللغة العربية تكتب من اليمين",
    "हिन्दी देवनागरी में लिखी जाती है",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "မြန်မာဘာသာ",
    "中文句子没有空格，模型也要学会。",
    "日本語の文章には空白がありません。",
    "한국어는 띄어쓰기를 합니다",
    "🙂👩\u200d👩\u200d👧 flags 🇩🇪",
    "nul \x00 and \x1b control",
    "\ufeffmark",
    "x" * 300,
    "Fill the<mask> here, and <mask> there",
    "<s> and </s> in a text",
]
TO_FILL = ["Fill the<mask> here", "中文句子<mask>空格", "ภาษาไทยไม่มี<mask>ระหว่างคำ"]
WORDS = ["Return", "the", "中文", "café"]
IN_TRANSFORMERS = """
import json, sys
import numpy as np, torch, transformers
folder, arrays, answers, version = sys.argv[1:]
assert transformers.__version__.startswith(version), transformers.__version__
model, loading = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
inputs = np.load(arrays)
with torch.no_grad():
    logits = model.eval()(torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["attention_mask"])).logits
texts, to_fill, words = json.loads(str(inputs["texts"]))
found = [tokenizer(text, return_offsets_mapping=True) for text in texts]
with_space = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
fill = transformers.pipeline("fill-mask", model=folder)
answer = {
    "ids": [encoding["input_ids"] for encoding in found],
    "offsets": [encoding["offset_mapping"] for encoding in found],
    "words": with_space(words, is_split_into_words=True)["input_ids"],
    "filled": [fill(text)[0]["token"] for text in to_fill],
    "class": type(tokenizer).__name__,
    "max_length": tokenizer.model_max_length,
}
np.savez(answers, logits=logits.numpy(), answer=json.dumps(answer))
"""
IN_ONNXRUNTIME = """
import sys
import numpy as np, onnxruntime
folder, arrays, answers = sys.argv[1:]
inputs = dict(np.load(arrays))
found = {}
for file, output in ("model", "logits"), ("encoder", "last_hidden_state"):
    session = onnxruntime.InferenceSession(f"{folder}/onnx/{file}.onnx")
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    for rows, length in (4, 24), (1, 17):
        some = {name: array[4 - rows:, :length] for name, array in inputs.items()}
        found[f"{output} {rows}"], = session.run([output], some)
np.savez(answers, **found)
"""
IN_CTRANSLATE2 = """
import sys
import numpy as np, ctranslate2
from ctranslate2.converters import TransformersConverter
folder, arrays, answers = sys.argv[1:]
TransformersConverter(folder).convert(f"{folder}/ctranslate2")
inputs = np.load(arrays)
rows = [ids[mask == 1].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
np.savez(answers, hidden=np.array(ctranslate2.Encoder(f"{folder}/ctranslate2").forward_batch(rows).last_hidden_state))
"""
NEW_IN_TRANSFORMERS = """
import sys
import torch, transformers
source, folder, tied = sys.argv[1:]
torch.manual_seed(0)
changes = dict(initializer_range=0.3, layer_norm_eps=1e-3, tie_word_embeddings=tied == "tied")
config = transformers.AutoConfig.from_pretrained(source, **changes)
model = transformers.RobertaForMaskedLM(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
model.save_pretrained(folder)
transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
"""


def python_of(variable: str) -> str:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python with torch and transformers")
    return python


@pytest.fixture
def torch_python() -> str:
    return python_of("TORCH_PYTHON")


@pytest.fixture(scope="module")
def trained(packed_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "ckp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run_pretrain.ARCHITECTURES, TINY, (2, 32, 2))
        run_pretrain.main([*training_arguments(packed_data, output), "--max_steps", "20", "--learning_rate", "1e-2"])
    return output


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A copy of one checkpoint, which a test may change."""
    shutil.copytree(trained, tmp_path / "ckp")
    return tmp_path / "ckp/paddle_20"


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
    was_training = model.training
    model.eval()
    logits = model(paddle.to_tensor(padded_ids()[0])).numpy()
    if was_training:
        model.train()
    return logits


def run_in(python: str, script: str, *arguments) -> None:
    run = subprocess.run([python, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def in_transformers(python: str, folder, tmp_path, version: str = "5.") -> tuple:
    """The logits that transformers computes with a directory, and what it makes of TEXTS, WORDS and TO_FILL."""
    ids, attention_mask = padded_ids()
    texts = json.dumps([TEXTS, TO_FILL, WORDS])
    np.savez(tmp_path / "in.npz", ids=ids, attention_mask=attention_mask, texts=texts)
    run_in(python, IN_TRANSFORMERS, folder, tmp_path / "in.npz", tmp_path / "out.npz", version)
    answers = np.load(tmp_path / "out.npz")
    return answers["logits"], json.loads(str(answers["answer"]))


def assert_equal_logits(one: np.ndarray, other: np.ndarray):
    """Where there is no padding; PaddleNLP computes something else at padded positions."""
    real = padded_ids()[1].astype(bool)
    assert one[real].std() > 0.1
    assert np.abs(one - other)[real].max() < 1e-4


# ---------------------------------------------------------------- to and from transformers


@pytest.mark.parametrize(("variable", "version"), [("TORCH4_PYTHON", "4."), ("TORCH_PYTHON", "5.")])
def test_transformers_computes_and_tokenizes_with_an_export_as_the_checkpoint(
    checkpoint, exported, tmp_path, variable, version
):
    logits, answer = in_transformers(python_of(variable), exported, tmp_path, version)
    model = transformers.RobertaForMaskedLM.from_pretrained(str(checkpoint))
    assert_equal_logits(logits, logits_in_paddle(model))
    assert answer["class"].startswith("RobertaTokenizer") and answer["max_length"] == 512
    paddlenlp = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
    assert answer["ids"][:-1] == [paddlenlp(text)["input_ids"] for text in TEXTS[:-1]]
    original = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    expected = [original.encode(text) for text in TEXTS]
    assert answer["ids"] == [encoding.ids for encoding in expected]
    assert answer["offsets"] == [[[*place] for place in encoding.offsets] for encoding in expected]
    assert answer["words"] == original.encode(" " + " ".join(WORDS)).ids
    for text, token in zip(TO_FILL, answer["filled"]):
        ids = original.encode(text).ids
        filled = model(paddle.to_tensor([ids]))[0, ids.index(paddlenlp.mask_token_id)]
        assert filled.argmax().item() == token


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
    back, original = (run_pretrain.load_model(str(folder), config)[0] for folder in (exported, checkpoint))
    np.testing.assert_allclose(logits_in_paddle(back), logits_in_paddle(original), atol=1e-5)
    back, original = back.state_dict(), original.state_dict()
    moved = [name for name in original if not np.array_equal(back[name].numpy(), original[name].numpy())]
    types, positions = (f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("token_type", "position"))
    assert len(original) > 30 and sorted(moved) == sorted([types, positions])
    assert not back[types].numpy().any() and original[types].numpy().all()
    capsys.readouterr()
    losses = []
    for folder in (checkpoint, exported):
        pretrain("--max_steps", "0", "--model_name_or_path", str(folder), output=tmp_path / "never")
        out = capsys.readouterr().out
        assert f"continuing from {folder}" in out
        losses.append(re.search(r"evaluation.*: (loss .*)", out)[1])
    assert losses[0] == losses[1]


def test_an_export_holds_every_weight_once_in_transformers_layout(checkpoint, exported):
    theirs = safetensors.numpy.load_file(exported / "model.safetensors")
    ours = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    name = "roberta.encoder.layers.1.linear1.weight"
    assert np.array_equal(theirs["roberta.encoder.layer.1.intermediate.dense.weight"], ours[name].T)
    assert np.array_equal(theirs["lm_head.dense.weight"], ours["lm_head.dense.weight"].T)
    names = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for our, their in names.items():
        expected = ours[f"roberta.encoder.layers.1.{our}.weight"].T
        assert np.array_equal(theirs[f"roberta.encoder.layer.1.{their}.weight"], expected), our
    assert {*theirs} == {*utils.to_transformers(ours)} - {"lm_head.decoder.weight"}
    assert np.array_equal(theirs["lm_head.decoder.bias"], theirs["lm_head.bias"])  # adapters reads the former
    config = json.loads((exported / "config.json").read_text())
    assert config["position_embedding_type"] == "absolute" and config["dtype"] == "float32"
    assert (exported / "vocab.json").exists() and (exported / "merges.txt").exists()
    assert not (exported / "training_state").exists() and not (exported / "SHA256SUMS").exists()


def test_an_export_says_that_sentences_are_the_means_of_their_tokens(exported):
    """In the form that sentence-transformers 5.0 and 6.2 both read (tried: means as computed by hand, exactly)."""
    modules = json.loads((exported / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]
    pooling = json.loads((exported / modules[1]["path"] / "config.json").read_text())
    assert pooling.pop("word_embedding_dimension") == 32
    assert [name for name, is_used in pooling.items() if is_used] == ["pooling_mode_mean_tokens"]


@pytest.mark.parametrize("pad_token_id", [1, 3, 300])
@pytest.mark.parametrize("seq_length", [32, 600])
def test_positions_are_enough_for_the_longest_text_that_a_tokenizer_lets_through(
    pad_token_id, seq_length, checkpoint, tmp_path, capsys
):
    """Positions are counted from pad_token_id + 1; many before it are said."""
    special = dict(bos_token_id=0, cls_token_id=0, eos_token_id=2, pad_token_id=pad_token_id, vocab_size=400)
    args = run_pretrain.parse_arguments(["--model_name_or_path", "roberta-en-tiny"])
    config = run_pretrain.build_config(args, SimpleNamespace(**special), seq_length)
    assert config.max_position_embeddings == max(512, seq_length) + pad_token_id + 1
    assert ("301 positions more that nothing uses" in capsys.readouterr().out) == (pad_token_id == 300)
    config.save_pretrained(str(tmp_path))
    for model_max_length in (256, 10**30):
        shutil.copy(checkpoint / "tokenizer_config.json", tmp_path)
        utils.update_json(str(tmp_path / "tokenizer_config.json"), model_max_length=model_max_length)
        utils.limit_length(str(tmp_path))
        limited = json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"]
        assert limited == min(model_max_length, max(512, seq_length))


def test_a_checkpoint_promises_no_more_tokens_than_its_positions_hold(exported, pretrain, tmp_path):
    change_config(exported, max_position_embeddings=34)
    os.remove(exported / "model.safetensors")  # from scratch
    run = pretrain("--max_steps", "1", "--model_name_or_path", str(exported), output=tmp_path / "short")
    assert json.loads((run / "paddle_1/tokenizer_config.json").read_text())["model_max_length"] == 32
    assert transformers.AutoTokenizer.from_pretrained(str(run / "paddle_1")).model_max_length == 32


# ---------------------------------------------------------------- other libraries


def ask(python: str, script: str, library: str, folder, tmp_path) -> dict:
    if subprocess.run([python, "-c", f"import {library}"], capture_output=True).returncode:
        pytest.skip(f"the Python of TORCH_PYTHON has no {library}")
    ids, attention_mask = padded_ids()
    np.savez(tmp_path / "in.npz", input_ids=ids, attention_mask=attention_mask)
    run_in(python, script, folder, tmp_path / "in.npz", tmp_path / "out.npz")
    return dict(np.load(tmp_path / "out.npz"))


has_onnx = paddle.__version__ >= "3"


@pytest.mark.skipif(not has_onnx, reason="paddle2onnx needs Paddle 3")
def test_onnx_models_compute_what_the_checkpoint_does_for_any_batch_and_length(checkpoint, torch_python, tmp_path):
    target = tmp_path / "with_onnx"
    run = run_script("utils.py", "--checkpoint", checkpoint, "--output_dir", target, "--onnx", "True")
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == f"written: {target}", run.stderr
    found = ask(torch_python, IN_ONNXRUNTIME, "onnxruntime", target, tmp_path)
    model = transformers.RobertaForMaskedLM.from_pretrained(str(checkpoint))
    model.eval()
    ids, attention_mask = padded_ids()
    for rows, length in (4, 24), (1, 17):
        some, real = paddle.to_tensor(ids[4 - rows :, :length]), attention_mask[4 - rows :, :length].astype(bool)
        for output, expected in ("logits", model(some)), ("last_hidden_state", model.roberta(some)[0]):
            assert expected.numpy().std() > 0.1
            assert np.abs(found[f"{output} {rows}"] - expected.numpy())[real].max() < 1e-5


@pytest.mark.skipif(has_onnx, reason="this Paddle writes ONNX")
def test_paddle_2_says_in_a_line_what_onnx_needs(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"--onnx True needs Paddle 3.0 or newer.*paddlepaddle==3.3.1"):
        utils.main(["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "never"), "--onnx", "True"])
    assert not (tmp_path / "never").exists()


def test_ctranslate2_computes_what_the_checkpoint_does(checkpoint, exported, torch_python, tmp_path):
    hidden = ask(torch_python, IN_CTRANSLATE2, "ctranslate2", exported, tmp_path)["hidden"]
    model = transformers.RobertaForMaskedLM.from_pretrained(str(checkpoint))
    model.eval()
    ids, real = padded_ids()[0], padded_ids()[1].astype(bool)
    expected = model.roberta(paddle.to_tensor(ids))[0].numpy()
    assert expected.std() > 0.1 and np.abs(hidden - expected)[real].max() < 1e-5


def swap(vocabulary: dict) -> dict:
    return {**vocabulary, "e": vocabulary["t"], "t": vocabulary["e"]}


def tokenizer_json_alone(folder, change: bool) -> None:
    """As transformers 5 saves it."""
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = swap(tokenizer["model"]["vocab"]) if change else tokenizer["model"]["vocab"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def as_roberta_base_is_published(folder, change: bool) -> None:
    """As tokenizers saved them before 0.9: merges as text, and no word on the kind of model."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    merges = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["merges"] = merges[::-1] if change else merges
    del tokenizer["model"]["type"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_vocabulary(folder, change: bool) -> None:
    (folder / "tokenizer.json").unlink()
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(swap(vocabulary) if change else vocabulary))


def other_merges(folder, change: bool) -> None:
    (folder / "tokenizer.json").unlink()
    first, *merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join([first, *(merges[::-1] if change else merges)]) + "\n", "utf-8")


def as_paddlenlp_saves_it(folder, change: bool) -> None:
    model = transformers.RobertaForMaskedLM.from_pretrained(str(folder))
    model.save_pretrained(f"{folder}_saved", safe_serialization=True)
    transformers.AutoTokenizer.from_pretrained(str(folder)).save_pretrained(f"{folder}_saved")
    shutil.rmtree(folder)
    os.rename(f"{folder}_saved", folder)
    assert not (folder / "tokenizer.json").exists()
    if change:
        vocabulary = swap(json.loads((folder / "vocab.json").read_text()))
        (folder / "vocab.json").write_text(json.dumps(vocabulary))


@pytest.mark.parametrize("change", [True, False], ids=["changed", "same"])
@pytest.mark.parametrize(
    "form", [tokenizer_json_alone, as_roberta_base_is_published, other_vocabulary, other_merges, as_paddlenlp_saves_it]
)
def test_another_tokenizer_than_the_datas_is_refused_in_whatever_form(
    checkpoint, pretrain, tmp_path, form, change, capsys
):
    (checkpoint / "SHA256SUMS").unlink()
    form(checkpoint, change)
    with pytest.raises(UserError, match="has another tokenizer than the data") if change else contextlib.nullcontext():
        pretrain("--max_steps", "0", "--model_name_or_path", str(checkpoint), output=tmp_path / "never")
    assert "no tokenizer to compare" not in capsys.readouterr().out


def test_a_model_without_a_tokenizer_is_said_to_be_uncompared(exported, pretrain, tmp_path, capsys):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (exported / name).unlink()
    pretrain("--max_steps", "0", "--model_name_or_path", str(exported), output=tmp_path / "never")
    assert f"warning: {exported} holds no tokenizer to compare with the data's" in capsys.readouterr().out
    (exported / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(UserError, match=r"is BERT's WordPiece \(vocab.txt\), no byte-level BPE"):
        pretrain("--max_steps", "0", "--model_name_or_path", str(exported), output=tmp_path / "never")
    (exported / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"is SentencePiece's \(sentencepiece.bpe.model\), no byte-level BPE"):
        pretrain("--max_steps", "0", "--model_name_or_path", str(exported), output=tmp_path / "never")


def test_a_checkpoint_without_a_tokenizer_is_not_exported(checkpoint, tmp_path):
    (checkpoint / "SHA256SUMS").unlink()
    (checkpoint / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"--checkpoint .* holds no tokenizer_config\.json: copy its tokenizer there"):
        utils.main(["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "never")])


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
    change_config(folder, dtype="bfloat16")


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
    more = {"roberta.embeddings.word_embeddings.weight", "lm_head.bias", "lm_head.decoder.bias"}
    change_weights(
        folder,
        lambda weights: {
            name: np.pad(array, [(0, 48), *[(0, 0)] * (array.ndim - 1)]) if name in more else array
            for name, array in weights.items()
        },
    )


def with_what_masked_language_modelling_does_not_use(folder) -> None:
    """As roberta-base is published."""
    more = {
        "roberta.embeddings.position_ids": np.arange(514).reshape(1, 514),
        "roberta.pooler.dense.weight": np.ones((32, 32), np.float32),
        "roberta.pooler.dense.bias": np.ones(32, np.float32),
    }
    change_weights(folder, lambda weights: weights | more)


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (in_half_precision, 2e-3),
        (in_bfloat16, 5e-2),
        (in_shards, 0),
        (padded_vocabulary, 1e-6),
        (with_what_masked_language_modelling_does_not_use, 0),
    ],
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


def test_weights_in_bfloat16_are_read_to_the_bit(exported):
    before = utils.read_weights(str(exported))
    in_bfloat16(exported)
    after = utils.read_weights(str(exported))
    assert after.keys() == before.keys()
    for name, array in after.items():
        assert array.dtype == np.float32
        assert np.array_equal(array.view(np.uint32), before[name].view(np.uint32) & 0xFFFF0000)


def test_what_is_not_used_is_said(exported, pretrain, tmp_path, capsys):
    with_what_masked_language_modelling_does_not_use(exported)
    pretrain("--max_steps", "0", "--model_name_or_path", str(exported), output=tmp_path / "never")
    assert re.search(r"continuing from .*; without roberta\.\S+, .*, which it does not use", capsys.readouterr().out)


def as_pytorch_saves_it(folder) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")


def without_a_head(folder) -> None:
    change_weights(folder, lambda weights: {name: a for name, a in weights.items() if not name.startswith("lm_head")})


def without_the_prefix_of_a_model_with_a_head(folder) -> None:
    change_weights(folder, lambda weights: {name.removeprefix("roberta."): array for name, array in weights.items()})


def with_relative_positions(folder) -> None:
    name = "roberta.encoder.layer.0.attention.self.distance_embedding.weight"
    change_weights(folder, lambda weights: weights | {name: np.zeros((1027, 16), np.float32)})


def with_an_output_of_its_own(folder) -> None:
    change_weights(folder, lambda weights: weights | {"lm_head.decoder.weight": np.zeros((400, 32), np.float32)})


def with_integers(folder) -> None:
    change_weights(folder, lambda weights: weights | {"lm_head.dense.weight": np.zeros((32, 32), np.int8)})


def without_a_shard(folder) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def with_shards_elsewhere(folder) -> None:
    index = {"weight_map": {"lm_head.bias": "../model.safetensors"}}
    os.rename(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_pytorch_saves_it, "has pytorch_model.bin, and only model.safetensors is read. If you trust"),
        (without_a_head, "they lack lm_head"),
        (without_the_prefix_of_a_model_with_a_head, "they lack roberta.embeddings"),
        (with_relative_positions, "has no roberta.encoder.layers.0.attention.self.distance_embedding.weight"),
        (with_an_output_of_its_own, "lm_head.decoder.weight is not roberta.embeddings.word_embeddings.weight"),
        (with_integers, "lm_head.dense.weight is of type I8: give weights in float32, float16 or bfloat16"),
        (without_a_shard, "lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names"),
        (with_shards_elsewhere, "lacks ../model.safetensors, which"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load the model"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors: it is damaged"),
    ],
)
def test_a_directory_that_cannot_be_continued_is_named_with_the_cause(exported, pretrain, tmp_path, change, message):
    change(exported)
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "1", "--model_name_or_path", str(exported), output=tmp_path / "never")
    assert message in str(error.value) and str(exported) in str(error.value) and "\\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "bert"),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
    ],
)
def test_a_setting_that_would_be_computed_otherwise_is_refused_by_name(exported, pretrain, tmp_path, setting, value):
    change_config(exported, **{setting: value})
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "0", "--model_name_or_path", str(exported), output=tmp_path / "never")
    assert f"has {setting} {json.dumps(value)}, and only" in str(error.value) and str(exported) in str(error.value)


TO_PYTORCH = """
import sys, torch, safetensors.torch
torch.save(safetensors.torch.load_file(f"{sys.argv[1]}/model.safetensors"), f"{sys.argv[1]}/pytorch_model.bin")
"""


@pytest.mark.parametrize("kind", ["paddle", "pytorch"])
def test_the_command_that_converts_other_weights_makes_them_readable(
    checkpoint, exported, pretrain, tmp_path, monkeypatch, kind, request
):
    if kind == "paddle":
        folder, python = checkpoint, sys.executable
        (folder / "SHA256SUMS").unlink()
        model = transformers.RobertaForMaskedLM.from_pretrained(str(folder))
        paddle.save(model.state_dict(), str(folder / "model_state.pdparams"))
    else:
        folder, python = exported, request.getfixturevalue("torch_python")
        run_in(python, TO_PYTORCH, folder)
    before = utils.read_weights(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError) as error:
        pretrain("--max_steps", "0", "--model_name_or_path", str(folder), output=tmp_path / "never")
    command = str(error.value).partition("convert it there: ")[2]
    path = {**os.environ, "PATH": f"{os.path.dirname(python)}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, env=path)
    after = utils.read_weights(str(folder))
    assert after.keys() == before.keys() and all(np.array_equal(after[name], before[name]) for name in after)
    pretrain("--max_steps", "0", "--model_name_or_path", str(folder), output=tmp_path / "never")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "merges.txt"])
def test_a_damaged_checkpoint_is_neither_evaluated_nor_continued(checkpoint, pretrain, tmp_path, name):
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: copy it anew, or, if you changed it yourself, delete"):
        pretrain("--max_steps", "0", "--model_name_or_path", str(checkpoint), output=tmp_path / "never")


# ---------------------------------------------------------------- more tokens, longer rows


def prepare(corpus: Path, output: Path, tokenizer: Path, seq_length: int) -> Path:
    options = f"--max_seq_length {seq_length} --validation_split_percentage 10 --tokenizer_name".split()
    create_data.main(["--data_files", str(corpus), "--output_dir", str(output), *options, str(tokenizer)])
    return output


def with_more_merges(checkpoint, folder) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<mask>"] = 399  # as in the published ones
    longest = max((token for token in tokenizer["model"]["vocab"] if token.isalpha()), key=len)
    for token_id, merge in (400, [longest, longest]), (401, [longest, "Ġ"]):
        tokenizer["model"]["vocab"]["".join(merge)] = token_id
        tokenizer["model"]["merges"].append(merge)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def with_special_tokens(checkpoint, folder) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert tokenizer.add_special_tokens(["<doc>", "<title>"]) == 2
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("extend", [with_more_merges, with_special_tokens])
def test_a_model_grows_by_the_tokens_that_the_data_has_more(checkpoint, pretrain, corpus, tmp_path, capsys, extend):
    (tmp_path / "extended").mkdir()
    extend(checkpoint, tmp_path / "extended")
    data = prepare(corpus, tmp_path / "extended_data", tmp_path / "extended", 32)
    arguments = "--max_steps", "1", "--learning_rate", "0", "--model_name_or_path", str(checkpoint)
    with pytest.raises(UserError, match=r"the data has 2 tokens that .* lacks: --resize_model True adds them"):
        pretrain(*arguments, data=data, output=tmp_path / "never")
    run = pretrain(*arguments, "--resize_model", "True", data=data, output=tmp_path / "grown")
    assert "2 tokens (as the mean of the others) added" in capsys.readouterr().out
    old, new = utils.read_weights(str(checkpoint)), utils.read_weights(str(run / "paddle_1"))
    for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.bias"):
        assert len(new[name]) == 402 and np.array_equal(new[name][:400], old[name])
        np.testing.assert_allclose(new[name][400:], [old[name].mean(0)] * 2, rtol=1e-5, atol=1e-7)
    assert json.loads((run / "paddle_1" / "config.json").read_text())["vocab_size"] == 402
    text = "<doc> a few <title>words"
    ids = Tokenizer.from_file(str(tmp_path / "extended" / "tokenizer.json")).encode(text).ids
    assert transformers.AutoTokenizer.from_pretrained(str(run / "paddle_1"))(text)["input_ids"] == ids
    pretrain("--max_steps", "0", "--model_name_or_path", str(run / "paddle_1"), data=data, output=tmp_path / "never")


def test_a_model_grows_by_the_positions_that_longer_rows_need(exported, pretrain, corpus, tmp_path, capsys):
    change_config(exported, max_position_embeddings=34)
    os.remove(exported / "model.safetensors")  # from scratch
    short = pretrain("--max_steps", "1", "--model_name_or_path", str(exported), output=tmp_path / "short") / "paddle_1"
    data = prepare(corpus, tmp_path / "longer", short, 80)
    arguments = "--max_steps", "1", "--learning_rate", "0", "--model_name_or_path", str(short), "--max_seq_length", "80"
    with pytest.raises(UserError, match=r"for 32: prepare it with --max_seq_length 32, or .* --resize_model True"):
        pretrain(*arguments, data=data, output=tmp_path / "never")
    run = pretrain(*arguments, "--resize_model", "True", data=data, output=tmp_path / "grown")
    assert "48 positions (which repeat the 32 others) added" in capsys.readouterr().out
    name = "roberta.embeddings.position_embeddings.weight"
    old, new = (utils.read_weights(str(folder))[name] for folder in (short, run / "paddle_1"))
    assert np.array_equal(new, np.concatenate([old, old[2:], old[2:18]]))
    assert json.loads((run / "paddle_1" / "tokenizer_config.json").read_text())["model_max_length"] == 80
    data = prepare(corpus, tmp_path / "shorter", short, 32)
    pretrain("--max_steps", "0", "--model_name_or_path", str(short), data=data, output=tmp_path / "never")


# ---------------------------------------------------------------- names of models


class Hub(http.server.BaseHTTPRequestHandler):
    """One model, mine/model, as the hub serves it."""

    folder: Path

    def do_HEAD(self):
        names = [path.name for path in self.folder.iterdir() if path.is_file()]
        if self.path.startswith("/api/models/mine/model"):
            content = json.dumps({"id": "mine/model", "sha": "1" * 40, "siblings": [{"rfilename": n} for n in names]})
            self.answer(content.encode())
        elif self.path.startswith("/mine/model/resolve/") and Path(self.path).name in names:
            self.answer((self.folder / Path(self.path).name).read_bytes())
        else:
            self.send_response(401)  # as the hub says that something is not there
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    do_GET = do_HEAD

    def answer(self, content: bytes):
        self.send_response(200)
        for name, value in {"Content-Length": len(content), "ETag": f'"{hash(content)}"'}.items():
            self.send_header(name, str(value))
        self.send_header("X-Repo-Commit", "1" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(exported, monkeypatch, tmp_path):
    """A server on this machine that this process takes for the hub, which has mine/model."""
    Hub.folder = exported
    (exported / "pytorch_model.bin").write_bytes(b"0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    use_hub(monkeypatch, server.server_port, tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch, port: int, tmp_path) -> None:
    options = {"endpoint": f"http://127.0.0.1:{port}", "cache_dir": str(tmp_path / "hub")}
    download = functools.partial(huggingface_hub.snapshot_download, **options)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run_pretrain.model_directory.cache_clear()


def test_a_model_of_the_hub_is_continued(hub, pretrain, tmp_path, capsys):
    pretrain("--max_steps", "0", "--model_name_or_path", "mine/model", output=tmp_path / "never")
    assert "continuing from mine/model" in capsys.readouterr().out
    downloaded = {path.name for path in (tmp_path / "hub").glob("models--mine--model/snapshots/*/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= downloaded
    assert "pytorch_model.bin" not in downloaded


def test_a_model_of_the_hub_without_safetensors_is_not_trained_from_scratch(hub, pretrain, exported, tmp_path):
    (exported / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"mine/model of the hub has no model\.safetensors: download it"):
        pretrain("--max_steps", "1", "--model_name_or_path", "mine/model", output=tmp_path / "never")


NAMES = {
    "roberta-en-tyni": "the hub has none of that name .*: did you mean roberta-en-tiny",
    "roberta_en_large": "the hub has none of that name .*: did you mean roberta-en-large",
    "nowhere/at/all": "the hub has none of that name .*: give a directory with config.json",
    "mine/other": "the hub has none of that name .*: give a directory with config.json",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_models_name_that_nobody_knows_gets_the_nearest_one(hub, pretrain, name, capfd):
    with pytest.raises(UserError, match=f"cannot load the model {name}: neither a directory nor .*{NAMES[name]}"):
        pretrain("--model_name_or_path", name)
    assert "BOS" not in "".join(capfd.readouterr())  # as PaddleNLP names its server


def test_without_a_network_that_is_said_at_once(pretrain, monkeypatch, tmp_path):
    use_hub(monkeypatch, 9, tmp_path)  # where nothing listens
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"the hub cannot be reached .*: did you mean roberta-en-tiny"):
        pretrain("--model_name_or_path", "roberta-en-tyni")
    assert time.perf_counter() - started < 20  # the hub's own client tries for half a minute


# ---------------------------------------------------------------- exporting


def test_an_export_never_replaces_anything_and_names_what_is_wrong(
    checkpoint, exported, tmp_path, monkeypatch, pretrain
):
    before = (exported / "config.json").read_bytes()
    with monkeypatch.context() as elsewhere, pytest.raises(UserError, match="holds the working directory"):
        elsewhere.chdir(exported)
        utils.main(["--checkpoint", str(checkpoint), "--output_dir", ""])
    assert (exported / "config.json").read_bytes() == before
    again = run_script("utils.py", "--checkpoint", checkpoint, "--output_dir", exported)
    assert again.returncode == 2 and again.stderr == f"error: --output_dir {exported} exists: choose another\n"
    assert (exported / "config.json").read_bytes() == before
    missing = run_script("utils.py", "--checkpoint", tmp_path / "no", "--output_dir", tmp_path / "new")
    assert missing.returncode == 2 and f"{tmp_path / 'no'} is no directory: give one that holds" in missing.stderr
    with pytest.raises(UserError, match=f"paddle_2 is no directory: did you mean {checkpoint}"):
        utils.main(["--checkpoint", str(checkpoint.parent / "paddle_2"), "--output_dir", str(tmp_path / "new")])
    above = f"--checkpoint {checkpoint.parent} holds no config.json: did you mean {checkpoint}\\?"
    with pytest.raises(UserError, match=above):
        utils.main(["--checkpoint", str(checkpoint.parent), "--output_dir", str(tmp_path / "new")])
    absent = checkpoint.parent / "paddle_99"  # which is looked for here, and not at the hub
    with pytest.raises(UserError, match=f"--model_name_or_path {absent} is no directory: did you mean {checkpoint}"):
        pretrain("--model_name_or_path", str(absent))
    with pytest.raises(UserError, match=f"_path {checkpoint.parent} holds no config.json: did you mean {checkpoint}"):
        pretrain("--model_name_or_path", str(checkpoint.parent))
    shutil.copytree(checkpoint, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        utils.main(["--checkpoint", str(tmp_path / "damaged"), "--output_dir", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_weights_without_a_head_are_not_exported(exported, tmp_path):
    without_a_head(exported)
    with pytest.raises(UserError, match="holds no weights of a RobertaForMaskedLM"):
        utils.main(["--checkpoint", str(exported), "--output_dir", str(tmp_path / "never")])
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("below", ["", "exported", "training_state/exported"])
def test_an_export_into_its_own_checkpoint_is_refused(checkpoint, below):
    before = sorted(checkpoint.rglob("*"))
    with pytest.raises(UserError, match=r"lies in the checkpoint: choose a directory outside of it|exists: choose"):
        utils.main(["--checkpoint", str(checkpoint), "--output_dir", f"{checkpoint}/{below}"])
    assert sorted(checkpoint.rglob("*")) == before


AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import utils
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
utils.main(["--checkpoint", sys.argv[2], "--output_dir", sys.argv[3]])
print(sorted(os.listdir(sys.argv[3])))
"""


def test_an_ordinary_user_exports_a_checkpoint_that_nobody_may_write(checkpoint):
    with tempfile.TemporaryDirectory() as folder:  # pytest's are root's alone
        source, target = Path(folder, "read_only"), Path(folder, "theirs", "exported")
        shutil.copytree(checkpoint, source)
        for path in [*source.rglob("*"), source]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        target.parent.mkdir()
        os.chmod(folder, 0o755)
        if os.getuid() == 0:
            os.chown(target.parent, 65534, 65534)
        arguments = [sys.executable, "-c", AS_NOBODY, str(ROOT), str(source), str(target)]
        run = subprocess.run(arguments, capture_output=True, text=True)
        assert run.returncode == 0 and "model.safetensors" in run.stdout, run.stderr
        assert all(os.stat(path).st_mode & 0o200 for path in target.rglob("*"))
        source.chmod(0o755)  # so that it can be removed
        (source / "training_state").chmod(0o755)


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
