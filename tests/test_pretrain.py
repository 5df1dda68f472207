"""What run_pretrain.py promises of a run: its update, its checkpoints, what it prints and refuses."""

import argparse
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import paddle
import pytest
import safetensors.numpy
from conftest import (
    ROOT,
    TINY,
    around_losses,
    around_updates,
    create,
    metrics,
    read_visualdl,
    run_of,
    run_script,
    text_of_words,
    training_arguments,
)
from paddlenlp import transformers

import run_pretrain
import utils
from run_pretrain import Machine, build_config, build_model, learning_rate_at, masked_loss
from utils import DataCollatorMLM, TokenRows, UserError

PAGE_COMMAND = """--model_name_or_path roberta-en-base --batch_size 16 --learning_rate 1e-4 --weight_decay 1e-2
--warmup_steps 10000 --num_train_epochs 3 --input_file wiki --output_dir ckp/ --logging_steps 100 --save_steps 10000
--max_steps -1 --device gpu --max_seq_length 512 --amp True"""


def load(data, split: str = "train"):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(data / "tokenizer"))
    return tokenizer, TokenRows(utils.open_data_set(str(data))[split])


@pytest.fixture
def build(monkeypatch, packed_data):
    """Builds a tiny model, always the same, as a run with these arguments does; its rows are padded or not."""
    monkeypatch.setitem(run_pretrain.ARCHITECTURES, TINY, (2, 32, 2))
    tokenizer, _ = load(packed_data)

    def build(*arguments: str, padded: bool = False):
        args = run_pretrain.parse_arguments([*training_arguments(packed_data, ROOT), *arguments])
        machine = Machine("cpu", run_pretrain.choose_precision(args, "cpu")[0])
        return build_model(args, build_config(args, tokenizer, 32, args.dropout), machine, padded)

    return build


@pytest.fixture
def batch(packed_data) -> dict:
    """8 packed rows as Paddle tensors."""
    tokenizer, rows = load(packed_data)
    batch = DataCollatorMLM(tokenizer)([rows[0, i] for i in range(8)])
    return {name: paddle.to_tensor(array) for name, array in batch.items()}


# ---------------------------------------------------------------- model and loss


def test_the_masked_only_head_gives_the_loss_and_gradients_of_full_logits(build, batch):
    model = build("--dropout", "0")
    masked = loss_and_gradients(model, batch)
    logits = model(batch["input_ids"]).reshape([-1, model.config.vocab_size])
    log_probabilities = paddle.nn.functional.log_softmax(logits)
    labels = batch["labels"].flatten()
    chosen = labels != -100
    picked = paddle.take_along_axis(log_probabilities, paddle.where(chosen, labels, 0 * labels).unsqueeze(-1), axis=1)
    full = -(picked.squeeze(-1) * chosen.astype("float32")).sum()
    full.backward()
    assert int(chosen.sum()) > 20
    assert_equal_losses_and_gradients(masked, (full.item(), taken_gradients(model)))


def loss_and_gradients(model, batch) -> tuple:
    """Of the masked loss, with dropout as the model's mode has it, and always the same."""
    paddle.seed(7)
    loss = masked_loss(model, batch)[0]
    loss.backward()
    return loss.item(), taken_gradients(model)


def taken_gradients(model) -> dict:
    """The model's gradients by the parameters' names; they are cleared."""
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    model.clear_gradients()
    return gradients


def assert_equal_losses_and_gradients(one: tuple, other: tuple, rtol: float = 1e-5):
    np.testing.assert_allclose(one[0], other[0], rtol=rtol)
    assert one[1].keys() == other[1].keys() and len(one[1]) > 30
    for name, expected in other[1].items():
        assert np.abs(expected - one[1][name]).max() <= rtol * max(np.abs(expected).max(), 1e-2), name


def ragged(batch: dict, tokenizer_pad: int = 1) -> dict:
    """The batch with the second half of every other row turned into padding."""
    input_ids, labels = batch["input_ids"].numpy().copy(), batch["labels"].numpy().copy()
    input_ids[::2, 16:], labels[::2, 16:] = tokenizer_pad, -100
    arrays = {"input_ids": input_ids, "labels": labels, "masked_positions": np.flatnonzero(labels != -100)}
    return {name: paddle.to_tensor(array) for name, array in arrays.items()}


@pytest.mark.parametrize("padded", [False, True])
def test_the_fast_layers_give_the_names_loss_and_gradients_of_paddlenlps_own(build, batch, monkeypatch, padded):
    batch = ragged(batch) if padded else batch
    fast = build("--dropout", "0", padded=padded)
    monkeypatch.setattr(run_pretrain, "use_fast_layers", lambda *arguments, **options: None)
    own = build("--dropout", "0")
    assert isinstance(fast.lm_head.decoder, run_pretrain.OutputLayer)
    assert not isinstance(own.lm_head.decoder, run_pretrain.OutputLayer)
    assert set(fast.state_dict()) == set(own.state_dict())
    assert_equal_losses_and_gradients(loss_and_gradients(fast, batch), loss_and_gradients(own, batch))


def test_flash_attention_computes_the_same_and_is_for_half_precision_without_padding(build, monkeypatch):
    monkeypatch.setattr(run_pretrain, "onednn", lambda: None)  # for a GPU's layers
    attention, used = build("--dropout", "0").roberta.encoder.layers[0].self_attn, []
    real = run_pretrain.F.scaled_dot_product_attention  # which Paddle computes on a CPU by other means
    monkeypatch.setattr(
        run_pretrain.F, "scaled_dot_product_attention", lambda *x, **options: used.append(1) or real(*x, **options)
    )
    hidden, mask = paddle.randn([3, 7, 32]), paddle.zeros([3, 1, 1, 7])
    results = []
    for ampere, dtype, padded in (
        (True, "float32", False),
        (False, "float64", False),  # for half precision, in which a CPU does not multiply
        (True, "float64", True),
        (True, "float64", False),
    ):
        monkeypatch.setattr(run_pretrain, "has_ampere", lambda ampere=ampere: ampere)
        attention.to(dtype=dtype)
        attention.is_padded = padded
        results.append((attention(hidden.astype(dtype), attn_mask=mask).numpy(), len(used)))
    assert [uses for _, uses in results] == [0, 0, 0, 1]
    for result, _ in results:
        np.testing.assert_allclose(result, results[0][0], atol=1e-6)


def test_attention_drops_as_often_as_asked_the_same_in_both_directions(build):
    attention = build("--dropout", "0.3").roberta.encoder.layers[0].self_attn
    attention.train()
    hidden, direction, weight = (paddle.randn([3, 5, 32]) for _ in range(3))
    mask = paddle.zeros([3, 1, 1, 5])

    def loss(shift: float):
        paddle.seed(3)
        return (attention(hidden + shift * direction, attn_mask=mask) * weight).sum()

    hidden.stop_gradient = False
    loss(0.0).backward()
    slope = (hidden.grad * direction).sum().item()
    assert slope == pytest.approx((loss(1e-2) - loss(-1e-2)).item() / 2e-2, rel=1e-2)
    assert loss(0.0).item() == loss(0.0).item()
    for projection, scale in ((attention.q_proj, 0), (attention.v_proj, 1), (attention.out_proj, 1)):
        projection.weight.set_value(scale * paddle.eye(32))
        projection.bias.set_value(paddle.zeros([32]))
    kept = attention(paddle.ones([16, 64, 32]), attn_mask=paddle.zeros([16, 1, 1, 64]))[..., ::16]  # once a head
    variance = 0.3 / 0.7 / 64  # of a mean of 64 equal weights, each kept with 0.7 and then 1 / 0.7
    assert kept.mean().item() == pytest.approx(1, abs=5 * math.sqrt(variance / (16 * 64 * 2)))
    assert kept.var().item() == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dropout", ["0", "0.1"])
def test_recompute_gives_the_same_gradients(build, batch, padded, dropout, monkeypatch):
    """With a GPU's layers: for a CPU's the flag is refused."""
    monkeypatch.setattr(run_pretrain, "onednn", lambda: None)
    if dropout != "0" and paddle.__version__.startswith("2."):
        pytest.skip("Paddle 2 keeps a generator's state on GPUs only")
    kept = loss_and_gradients(build("--dropout", dropout, padded=padded), batch)
    model, calls = build("--dropout", dropout, "--recompute", "True", padded=padded), []
    for layer in model.roberta.encoder.layers:
        layer.norm1.register_forward_post_hook(lambda *_: calls.append(1))
    assert_equal_losses_and_gradients(loss_and_gradients(model, batch), kept, rtol=1e-6)
    assert len(calls) == 4  # each of the two layers forward, and once more backward
    model.eval()
    assert (loss_and_gradients(model, batch)[0] == kept[0]) == (dropout == "0")


def test_recompute_keeps_the_generator_where_attention_alone_has_dropout(packed_data, build, batch, monkeypatch):
    """Else the second forward pass would draw another dropout, and the gradients would be wrong, silently."""
    tokenizer, _ = load(packed_data)
    args = run_pretrain.parse_arguments([*training_arguments(packed_data, ROOT), "--recompute", "True"])
    config = build_config(args, tokenizer, 32, 0.0)
    config.attention_probs_dropout_prob = 0.1
    kept = []

    def recompute(forward, *inputs, preserve_rng_state, use_reentrant, **more):
        kept.append(preserve_rng_state)
        return forward(*inputs, **more)

    monkeypatch.setattr(run_pretrain, "onednn", lambda: None)
    monkeypatch.setattr(run_pretrain.dist.fleet.utils, "recompute", recompute)
    run_pretrain.masked_loss(build_model(args, config, Machine("cpu", "float32"), False), batch)
    assert kept == [True, True]


def test_an_evaluation_alone_needs_no_recomputation_and_says_so(pretrain, capsys):
    pretrain("--max_steps", "0", "--recompute", "True", "--resize_model", "True")
    printed = capsys.readouterr().out
    assert re.search(r"not used by an evaluation alone \(--max_steps 0\): .*--recompute", printed)
    assert "not used, as the model is made for the data: --resize_model\n" in printed


def test_the_tokens_of_an_update_are_those_of_all_its_micro_batches(build):
    """Each is padded to a length of its own."""
    run = run_of(build())
    batches = [{"input_ids": paddle.zeros([2, length], "int64")} for length in (8, 24)]
    update = {"skipped": False, "loss_sum": 6.0, "num_masked": 3.0}
    run_pretrain.add_to_window(run, update, batches, data_seconds=0.0, seconds=1.0)
    assert run.progress.window["tokens"] == 2 * (8 + 24)
    assert run.progress.window["flops"] == run_pretrain.update_flops(run.model.config, 64, 20, 3.0)
    run.machine, run.progress.window = Machine("cpu", "float32", 0, 2), {}
    run_pretrain.add_to_window(run, update, batches, data_seconds=0.0, seconds=1.0)
    assert run.progress.window["tokens"] == 2 * 2 * (8 + 24)  # the other rank's, too


def test_ranks_may_take_half_an_hour_for_each_micro_batch(pretrain, monkeypatch):
    """Beyond it one ends: test_distributed.py."""
    armed, callers, real = [], [], run_pretrain.expect_progress
    monkeypatch.setattr(run_pretrain.faulthandler, "dump_traceback_later", lambda *limit, exit: armed.append(*limit))
    monkeypatch.delenv("PADDLE_PG_TIMEOUT", raising=False)
    real(Machine("cpu", "float32"))  # waits for nobody
    real(Machine("cpu", "float32", 0, 2))
    for milliseconds in ("2000", "0"):
        monkeypatch.setenv("PADDLE_PG_TIMEOUT", milliseconds)
        real(Machine("cpu", "float32", 0, 2))
    assert armed == [1800, 2]
    monkeypatch.setattr(run_pretrain, "expect_progress", lambda _: callers.append(sys._getframe(1).f_code.co_name))
    pretrain("--max_steps", "2", "--gradient_accumulation_steps", "2", "--max_eval_rows", "24")
    compared = ["compare_over_ranks", "watching_progress", "compare_over_ranks"]  # at the start, and the checkpoint
    assert callers == [*compared, *["train_update"] * 4, *["evaluate"] * 3]


def test_a_row_that_cannot_be_masked_is_not_laid_to_words_where_single_tokens_are_masked(pretrain, monkeypatch):
    def fail(*arguments):
        raise ValueError("of a test")

    monkeypatch.setattr(utils, "describe_row", fail)
    with pytest.raises(ValueError, match="of a test"):
        pretrain("--max_steps", "1")
    with pytest.raises(UserError, match=r"cannot tell the words of this text.*of a test"):
        pretrain("--max_steps", "1", "--whole_word_masking", "True")


def test_a_want_of_memory_is_never_taken_for_damage():
    with pytest.raises(MemoryError), utils.explaining("damaged"):
        raise MemoryError
    with pytest.raises(UserError, match="damaged"), utils.explaining("damaged"):
        raise OSError


def test_a_mistake_in_the_code_is_never_taken_for_damage(pretrain, monkeypatch):
    """Whoever changes load_data() and mistypes a name sees where."""
    monkeypatch.setattr(run_pretrain, "check_ids", lambda *_: of_no_such_name)  # noqa: F821
    with pytest.raises(NameError, match="of_no_such_name"):
        pretrain("--max_steps", "1")


def test_a_want_of_memory_is_one_line_in_each_script(monkeypatch, capsys):
    def main():
        raise MemoryError

    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="2"):
        utils.command_line(main)
    assert capsys.readouterr().err == "error: out of memory\n"


def test_a_mask_is_used_only_where_rows_are_padded(pretrain, packed_data, ragged_data, tmp_path, monkeypatch):
    real, built = run_pretrain.use_fast_layers, []
    monkeypatch.setattr(run_pretrain, "use_fast_layers", lambda *model: built.append(model[3]) or real(*model))
    pretrain("--max_steps", "1", output=tmp_path / "packed")
    pretrain("--max_steps", "1", data=ragged_data, output=tmp_path / "ragged")
    assert built == [False, True]


# ---------------------------------------------------------------- weights and schedule


def test_padding_does_not_change_the_logits_of_unpadded_positions(build, batch):
    ids = batch["input_ids"][:1]
    padding = paddle.full([1, 9], 1, dtype="int64")
    changes = []
    for padded in (True, False):
        model = build(padded=padded)
        model.eval()
        change = model(paddle.concat([ids, padding], axis=1))[:, :32] - model(ids)
        changes.append(change.abs().max().item())
    assert changes[0] < 1e-5 < 1e-3 < changes[1]  # without a mask it would


def test_a_batch_without_a_masked_token_has_no_loss_and_no_gradient(build, batch, packed_data):
    model = build()
    nothing = DataCollatorMLM(load(packed_data)[0], mlm_probability=1e-9)([{"input_ids": [0, 5, 6, 2]}])
    assert len(nothing["masked_positions"]) > 0
    loss, _ = masked_loss(model, {name: paddle.to_tensor(array) for name, array in nothing.items()})
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.numpy().any() for p in model.parameters())


def test_every_value_of_the_architecture_is_robertas(packed_data):
    args = run_pretrain.parse_arguments(["--model_name_or_path", "roberta-en-base", "--max_seq_length", "512"])
    config = build_config(args, load(packed_data)[0], 512)
    expected = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "vocab_size": 400,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def schedule(name: str, warmup_steps: int, total_steps: int) -> list:
    """The rates of a run's updates, as shares of the peak."""
    run = run_of(None, "--lr_scheduler", name, "--learning_rate", "1", warmup_steps=warmup_steps)
    run.total_steps = total_steps
    return [learning_rate_at(step, run) for step in range(1, total_steps + 1)]


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero_just_after_the_last_update():
    expected = [0.25, 0.5, 0.75, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    np.testing.assert_allclose(schedule("linear", 4, 10), expected)
    assert schedule("linear", 0, 1) == [0.5] and schedule("linear", 1, 1) == [1]


@pytest.mark.parametrize("name", ["linear", "constant_with_warmup", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 4, 10])
def test_the_schedules_are_those_of_transformers_without_its_first_update_at_rate_0(name, warmup_steps):
    def theirs(step: int, total_steps: int) -> float:  # transformers/optimization.py, step counted from 0
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return {
            "linear": max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps)),
            "constant_with_warmup": 1.0,
            "cosine": max(0.0, 0.5 * (1 + math.cos(math.pi * 0.5 * 2 * progress))),
        }[name]

    assert warmup_steps == 0 or theirs(0, 11) == 0
    np.testing.assert_allclose(schedule(name, warmup_steps, 10), [theirs(step, 11) for step in range(1, 11)])


def test_a_single_update_trains(pretrain, build):
    trained = safetensors.numpy.load_file(pretrain("--max_steps", "1") / "paddle_1" / "model.safetensors")
    new = {name: tensor.numpy() for name, tensor in build().state_dict().items()}
    moved = [np.abs(trained[name] - array).max() for name, array in new.items()]
    assert len(moved) > 30 and max(moved) == pytest.approx(1e-3, rel=0.01)  # AdamW's first step is its rate


@pytest.mark.parametrize(("given", "steps"), [((), 3), (("--warmup_steps", "0.2"), 8), (("--warmup_steps", "7"), 7)])
def test_the_warmup_is_a_number_of_updates_or_a_share_of_them(pretrain, given, steps, capsys):
    output = pretrain("--max_steps", "40", "--logging_steps", "1", *given)
    assert re.search(rf"40 updates of 8 rows \([\d.]+ epochs\), {steps} of them warmup", capsys.readouterr().out)
    rates = [record["learning_rate"] for record in metrics(output, "train")]
    assert rates[:steps] == pytest.approx([1e-3 * k / steps for k in range(1, steps + 1)])
    assert rates[steps] < 1e-3 and len(rates) == 40


@pytest.mark.parametrize("by", ["adamw", "muon"])
def test_weight_decay_spares_biases_and_layer_norms(build, by):
    model = build()
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    optimizer = run_of(model, "--learning_rate", "1e-3", "--weight_decay", "0.5", "--optimizer", by).optimizer
    (0 * sum(p.sum() for p in model.parameters())).backward()  # no gradient: only decay moves a weight
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 1e-3 * 0.5) if parameter.ndim >= 2 else before[name]
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=1e-6, err_msg=name)


def test_muon_takes_the_matrices_of_layers_and_adamw_all_else(pretrain):
    output = pretrain("--max_steps", "1", "--optimizer", "muon")
    tensors = safetensors.numpy.load_file(output / "paddle_1" / "training_state" / "optimizer.safetensors")
    weights = safetensors.numpy.load_file(output / "paddle_1" / "model.safetensors")
    by_muon = {name.removesuffix("/momentum") for name in tensors if name.endswith("/momentum")}
    by_adamw = {name.removesuffix("/moment2") for name in tensors if name.endswith("/moment2")}
    tables = {name for name in weights if "embeddings" in name or "decoder" in name}
    assert by_muon == {name for name, array in weights.items() if array.ndim == 2} - tables and len(by_muon) == 13
    assert "roberta.embeddings.word_embeddings.weight" in by_adamw and not by_muon & by_adamw


def test_adams_moments_decay_by_09_and_098(pretrain):
    """After one update the moments are (1 - beta1) g and (1 - beta2) g^2."""
    output = pretrain("--max_steps", "1", "--max_grad_norm", "0")
    tensors = safetensors.numpy.load_file(output / "paddle_1" / "training_state" / "optimizer.safetensors")
    name = "roberta.encoder.layers.0.linear1.weight"
    first, second = (tensors[f"{name}/{moment}"].astype(np.float64) for moment in ("moment1", "moment2"))
    assert np.abs(first).max() > 1e-6
    assert second.sum() / np.square(first).sum() == pytest.approx((1 - 0.98) / (1 - 0.9) ** 2, rel=1e-3)


def test_the_gradient_is_that_of_the_mean_over_the_masked_tokens_of_all_micro_batches(build, batch):
    model, twin = build("--dropout", "0"), build("--dropout", "0")
    fewer = {**batch, "masked_positions": batch["masked_positions"][:20]}  # of other size
    fewer["labels"] = paddle.full_like(batch["labels"], -100).flatten()
    fewer["labels"] = paddle.scatter(
        fewer["labels"], fewer["masked_positions"], paddle.gather(batch["labels"].flatten(), fewer["masked_positions"])
    ).reshape(batch["labels"].shape)
    update = run_pretrain.train_update(run_of(model), [batch, fewer])
    loss = sum(masked_loss(twin, micro_batch)[0] for micro_batch in (batch, fewer))
    number = sum(int((micro_batch["labels"] != -100).sum()) for micro_batch in (batch, fewer))
    (loss / number).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in twin.parameters()))
    assert update["num_masked"] == number and number > 20
    assert update["loss_sum"] == pytest.approx(loss.item(), rel=1e-5)
    assert update["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_each_micro_batch_of_each_rank_and_update_has_dropout_of_its_own(build, batch, monkeypatch):
    run, seeds, real = run_of(build()), [], paddle.seed
    monkeypatch.setattr(paddle, "seed", lambda seed: seeds.append(seed) or real(seed))
    for run.progress.global_step in (0, 1):
        for rank in (0, 1):
            run.machine = Machine("cpu", "float32", rank)
            run_pretrain.train_update(run, [batch, batch])
    assert len(seeds) == len(set(seeds)) == 8


def test_padding_in_either_split_needs_the_mask(packed_data, ragged_data, tmp_path):
    ragged = datasets.load_from_disk(str(ragged_data))
    for train, validation, padded in ((False, False, False), (False, True, True), (True, False, True)):
        data = tmp_path / f"{train}{validation}"
        splits = datasets.load_from_disk(str(packed_data))
        for name, is_ragged in (("train", train), ("validation", validation)):
            splits[name] = ragged[name] if is_ragged else splits[name]
        splits.save_to_disk(str(data))
        shutil.copytree(packed_data / "tokenizer", data / "tokenizer")
        loaded = run_pretrain.load_data(
            run_pretrain.parse_arguments(["--input_file", str(data)]), run_pretrain.RECIPES["roberta"]
        )
        assert loaded.is_padded is padded and loaded.seq_length == 32


def test_padding_to_one_length_needs_the_mask_too(packed_data, tmp_path):
    """As rows that somebody padded to the longest."""
    splits = datasets.load_from_disk(str(packed_data))
    pad = json.loads((packed_data / "tokenizer/vocab.json").read_text())["<pad>"]
    splits["train"] = splits["train"].map(lambda row: {"input_ids": [*row["input_ids"][:-3], *[pad] * 3]})
    splits.save_to_disk(str(tmp_path / "data"))
    shutil.copytree(packed_data / "tokenizer", tmp_path / "data/tokenizer")
    args = run_pretrain.parse_arguments(["--input_file", str(tmp_path / "data")])
    loaded = run_pretrain.load_data(args, run_pretrain.RECIPES["roberta"])
    assert loaded.is_padded and loaded.train.shortest == loaded.train.longest
    end = json.loads((packed_data / "tokenizer/vocab.json").read_text())["</s>"]
    splits["train"] = splits["train"].map(lambda row: {"input_ids": [*row["input_ids"][:-1], end]})  # <pad> in the text
    splits.save_to_disk(str(tmp_path / "text"))
    shutil.copytree(packed_data / "tokenizer", tmp_path / "text/tokenizer")
    args = run_pretrain.parse_arguments(["--input_file", str(tmp_path / "text")])
    assert not run_pretrain.load_data(args, run_pretrain.RECIPES["roberta"]).is_padded


# ---------------------------------------------------------------- a run


def test_a_run_from_start_to_checkpoint(pretrain, packed_data, capsys):
    output = pretrain("--max_steps", "60", "--learning_rate", "3e-2", "--save_steps", "30", "--warmup_steps", "5")
    train, evaluations = metrics(output, "train"), metrics(output, "evaluation")
    assert [record["step"] for record in train] == list(range(1, 61))
    assert abs(train[0]["loss"] / math.log(400) - 1) < 0.03  # an untrained model knows nothing
    assert train[-1]["loss"] < train[0]["loss"] - 0.5
    assert [record["step"] for record in evaluations] == [30, 60]
    assert evaluations[0]["perplexity"] == pytest.approx(math.exp(evaluations[0]["eval_loss"]))
    assert 0 < evaluations[1]["accuracy"] < 1
    assert 0 < evaluations[1]["loss_without_context"] < evaluations[1]["unigram_entropy"] < math.log(400)
    shown = capsys.readouterr().out.splitlines()
    assert any("training from scratch" in line for line in shown)
    threads = os.environ["OMP_NUM_THREADS"]
    device = f"device: cpu, 1 process(es) of {threads} thread(s), Paddle {paddle.__version__}; "
    assert f"{device}products in float32 (--amp False)" in shown
    loss, perplexity = evaluations[1]["eval_loss"], evaluations[1]["perplexity"]
    assert shown[-1] == f"done: {output}/paddle_60, evaluation loss {loss:.4f}, perplexity {perplexity:.2f}"
    lines = [line for line in shown if line.startswith("step ")]
    pattern = r"step {}/60  loss {:.3f}  rate {:.2e}  [\d,]+ tokens/s  \d+ s left"
    for line, record in zip(lines, train, strict=True):
        assert re.fullmatch(pattern.format(record["step"], record["loss"], record["learning_rate"]), line)
    [yardsticks] = [line for line in shown if line.startswith("yardsticks")]
    assert all(f"{evaluations[1][key]:.3f}" in yardsticks for key in ("unigram_entropy", "loss_without_context"))


def test_from_pretrained_gives_the_logits_of_the_model_that_was_saved(pretrain, packed_data, monkeypatch):
    saved = {}
    real = run_pretrain.save_checkpoint

    def save_and_remember(run):
        real(run)
        _, rows = load(packed_data, "validation")
        saved["ids"] = paddle.to_tensor(np.stack([rows[0, i]["input_ids"] for i in range(4)]).astype("int64"))
        run.model.eval()
        saved["logits"] = run.model(saved["ids"]).numpy()
        run.model.train()

    monkeypatch.setattr(run_pretrain, "save_checkpoint", save_and_remember)
    checkpoint = str(pretrain("--max_steps", "5") / "paddle_5")
    for kind in (transformers.RobertaForMaskedLM, transformers.AutoModelForMaskedLM):
        model = kind.from_pretrained(checkpoint)
        model.eval()
        np.testing.assert_allclose(model(saved["ids"]).numpy(), saved["logits"], atol=1e-5)  # by PaddleNLP's own layers
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, num_classes=2)
    assert type(model) is transformers.RobertaForSequenceClassification
    ours = transformers.AutoTokenizer.from_pretrained(checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(str(packed_data / "tokenizer"))
    assert ours("a few words")["input_ids"] == theirs("a few words")["input_ids"] != []
    assert (ours.mask_token_id, ours.pad_token_id) == (399, 1)


def test_training_continues_from_a_checkpoints_weights(pretrain, tmp_path, capsys):
    first = pretrain("--max_steps", "40", "--learning_rate", "3e-2")
    second = pretrain("--max_steps", "5", "--model_name_or_path", str(first / "paddle_40"), output=tmp_path / "second")
    assert f"continuing from {first / 'paddle_40'}" in capsys.readouterr().out
    assert metrics(second, "train")[0]["loss"] < math.log(400) - 0.5


def test_line_by_line_data_trains_and_evaluates(pretrain, ragged_data):
    output = pretrain("--max_steps", "40", "--learning_rate", "3e-2", data=ragged_data)
    losses = [record["loss"] for record in metrics(output, "train")]
    assert abs(losses[0] / math.log(400) - 1) < 0.03 and np.mean(losses[-5:]) < losses[0] - 0.3
    assert metrics(output, "evaluation")[-1]["eval_loss"] < losses[0] - 0.3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(pretrain, tmp_path):
    runs = [pretrain("--max_steps", "4", "--seed", s, output=tmp_path / f"{i}") for i, s in enumerate("112")]
    losses = [[record["loss"] for record in metrics(run, "train")] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_the_seed_is_that_of_the_order_of_rows_of_masks_and_of_dropout(pretrain, monkeypatch, tmp_path):
    seen, seeds, real = [], [], paddle.seed
    around_losses(monkeypatch, before=lambda model, batch: seen.append((model.training, batch)))
    monkeypatch.setattr(paddle, "seed", lambda seed: seeds.append(seed) or real(seed))
    rows, masks, drawn = [], [], []
    for seed in "12":
        seen.clear(), seeds.clear()
        pretrain("--max_steps", "1", "--seed", seed, output=tmp_path / seed)
        training, evaluation = (next(b for is_training, b in seen if is_training is kind) for kind in (True, False))
        ids, labels = training["input_ids"].numpy(), training["labels"].numpy()
        rows.append(np.where(labels == -100, ids, labels))  # as they were before they were masked
        masks.append(evaluation["labels"].numpy() == -100)  # of the same rows
        drawn.append(seeds[-1])  # of the update
        assert len(seeds) > 1 and seeds[-1] != int(seed)
    assert rows[0].shape == rows[1].shape and (rows[0] != rows[1]).any()
    assert masks[0].shape == masks[1].shape and (masks[0] != masks[1]).any()
    assert drawn[0] != drawn[1]


def test_logits_that_are_nan_give_a_loss_that_is():
    """Paddle's cross entropy gives a finite one on a CPU (see findings)."""
    loss = run_pretrain.cross_entropy(paddle.full([2, 64], math.nan), paddle.to_tensor([1, -100]))
    assert math.isnan(loss.item())


def test_the_end_is_max_steps_or_the_epochs_whichever_comes_first(pretrain, tmp_path, packed_data):
    updates_per_epoch = len(load(packed_data)[1]) // 64
    assert updates_per_epoch > 3
    arguments = ("--batch_size", "32", "--gradient_accumulation_steps", "2", "--num_train_epochs", "2")
    whole = pretrain(*arguments, output=tmp_path / "whole")
    assert metrics(whole, "train")[-1]["step"] == 2 * updates_per_epoch
    assert metrics(pretrain(*arguments, "--max_steps", "3"), "train")[-1]["step"] == 3


def test_training_goes_on_without_a_planned_end(pretrain, tmp_path):
    """With the constant schedule a resumed run may be longer, and is the run that was longer from the start."""
    constant = ("--lr_scheduler", "constant_with_warmup", "--warmup_steps", "2", "--learning_rate", "1e-2")
    whole = pretrain("--max_steps", "6", *constant, output=tmp_path / "whole")
    grown = pretrain("--max_steps", "3", *constant)
    pretrain("--max_steps", "6", *constant, "--resume_from_checkpoint", "auto")
    losses = [[record["loss"] for record in metrics(output, "train")] for output in (whole, grown)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert [record["learning_rate"] for record in metrics(grown, "train")] == [5e-3] + [1e-2] * 5
    names = ("model.safetensors", "training_state/optimizer.safetensors")
    assert all((whole / "paddle_6" / n).read_bytes() == (grown / "paddle_6" / n).read_bytes() for n in names)
    linear = pretrain("--max_steps", "3", output=tmp_path / "linear")
    with pytest.raises(
        UserError,
        match=r"the number of updates \(was 3, is 6: --max_steps 3 without --num_train_epochs gives the former\)",
    ):
        pretrain("--max_steps", "6", "--resume_from_checkpoint", "auto", output=linear)
    with pytest.raises(UserError, match=r"--lr_scheduler \(was linear, is constant_with_warmup.*") as error:
        pretrain("--max_steps", "6", *constant[:2], "--resume_from_checkpoint", "auto", output=linear)
    assert "the number of updates" not in str(error.value)


@pytest.mark.parametrize("change", ["--whole_word_masking True", "--lr_scheduler cosine", "--warmup_steps 0.5"])
def test_a_resumed_run_keeps_what_changes_its_result(pretrain, change):
    pretrain("--max_steps", "1")
    name, value = change.removeprefix("--").split()
    with pytest.raises(UserError, match=rf"would change the result: --{name} \(was .*, is {value}"):
        pretrain("--max_steps", "1", "--resume_from_checkpoint", "auto", *change.split())


def test_whole_words_are_masked_in_training_and_evaluation(pretrain, packed_data, monkeypatch, tmp_path):
    tokenizer, _ = load(packed_data)
    seen = []
    around_losses(monkeypatch, before=lambda model, batch: seen.append((model.training, batch)))
    begins = np.array([t.startswith("Ġ") for t in tokenizer.convert_ids_to_tokens(list(range(400)))])
    shares = []
    for flag in ("True", "False"):
        seen.clear()
        pretrain("--max_steps", "2", "--whole_word_masking", flag, output=tmp_path / flag)
        for kind in (True, False):
            found = [joined(batch, begins) for is_training, batch in seen if is_training is kind]
            shares.append(np.mean(found))
    assert min(shares[:2]) > 0.9 > 0.5 > max(shares[2:])  # not 1: behind a line end a word begins without a space


def joined(batch: dict, begins: np.ndarray) -> float:
    """How often, where a token is chosen and the next continues its word, the next is chosen too."""
    labels = batch["labels"].numpy()
    ids = np.where(labels == -100, batch["input_ids"].numpy(), labels)  # as they were
    continued = ~begins[ids[:, 1:]] & (ids[:, 1:] > 2) & (ids[:, :-1] > 2) & (labels[:, :-1] != -100)
    assert continued.sum() > 5
    return float((labels[:, 1:] != -100)[continued].mean())


# ---------------------------------------------------------------- evaluations


def test_evaluating_only_prints_the_loss_of_the_model_and_writes_a_line_on_request(
    pretrain, packed_data, tmp_path, capsys, monkeypatch
):
    output = pretrain("--max_steps", "8", "--learning_rate", "3e-2")
    record = metrics(output, "evaluation")[-1]
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    evaluated = "--max_steps", "0", "--model_name_or_path", str(output / "paddle_8"), "--batch_size", "1000000"
    monkeypatch.chdir(tmp_path)
    run_pretrain.main(["--input_file", str(packed_data), "--device", "cpu", "--amp", "False", *evaluated])
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out.splitlines()
    line = "evaluation: loss {eval_loss:.4f}, perplexity {perplexity:.2f}, accuracy {accuracy:.2%}: "
    assert (
        shown[-1].startswith(line.format(**record))
        and shown[-1].endswith(run_pretrain.where_it_stands(record))
        and 1 < record["eval_loss"] < math.log(400)
    )
    assert f"evaluating: 280 rows of {packed_data}" in shown
    [yardsticks] = [line for line in shown if line.startswith("yardsticks")]
    assert all(f"{record[key]:.3f}" in yardsticks for key in ("unigram_entropy", "loss_without_context"))
    assert any(line.endswith(f"continuing from {output / 'paddle_8'}") for line in shown)
    pretrain(*evaluated, output=tmp_path / "asked")
    assert [path.name for path in (tmp_path / "asked").iterdir()] == ["metrics.jsonl"]
    [asked] = metrics(tmp_path / "asked", "evaluation")
    assert asked.pop("event") == record.pop("event") and asked.pop("model") == str(output / "paddle_8")
    assert f"2,175 rows of {packed_data}, 280 of validation, digest " in asked.pop("data")
    assert asked == pytest.approx({**record, "step": 0}, rel=1e-5)


def test_text_that_is_held_out_as_a_whole_can_be_evaluated_but_not_trained_on(pretrain, packed_data, tmp_path, capsys):
    data = replace_rows(packed_data, tmp_path, "train", nothing)
    pretrain("--max_steps", "0", data=data)
    assert "evaluation: loss 5.9" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"a global batch of 8 rows, but 0 in the data: prepare some to train on, or"):
        pretrain("--max_steps", "1", data=data)


def test_an_evaluation_reads_the_same_max_eval_rows_each_time(pretrain, tmp_path, packed_data):
    rows = len(load(packed_data, "validation")[1])
    assert rows > 40
    arguments = ("--max_steps", "2", "--save_steps", "1", "--learning_rate", "0")
    limits = ("20", "0", "1000000")
    runs = [pretrain(*arguments, "--max_eval_rows", n, output=tmp_path / n) for n in limits]
    some, every, more = ([record["eval_loss"] for record in metrics(run, "evaluation")] for run in runs)
    assert every == more and some[0] == some[1] != every[0]


def test_the_best_checkpoint_is_kept_and_named_at_the_end(pretrain, monkeypatch, capsys, tmp_path):
    losses = dict(zip((2, 4, 6, 8, 10), (5.0, 4.0, 4.5, 4.25, 4.75)))
    evaluation = {"perplexity": 1.0, "accuracy": 0.5}
    monkeypatch.setattr(
        run_pretrain, "evaluate", lambda run, _: {"eval_loss": losses[run.progress.global_step], **evaluation}
    )
    more = "--save_steps", "2", "--save_total_limit", "2"
    output = pretrain("--max_steps", "10", *more)
    assert sorted(path.name for path in output.glob("paddle_*")) == ["paddle_10", "paddle_4", "paddle_8"]
    last, end = capsys.readouterr().out.splitlines()[-2:]
    assert last == "best: step 4, evaluation loss 4.0000"
    assert end == f"done: {output}/paddle_10, evaluation loss 4.7500, perplexity 1.00"
    shutil.rmtree(output / "paddle_10")
    pretrain("--max_steps", "10", *more, "--resume_from_checkpoint", "auto")
    assert last in capsys.readouterr().out.splitlines()
    pretrain("--max_steps", "10", "--resume_from_checkpoint", str(output / "paddle_8"), output=tmp_path / "elsewhere")
    assert last in capsys.readouterr().out.splitlines()


def test_weights_that_became_too_large_to_evaluate_are_named(pretrain):
    with pytest.raises(UserError, match="the evaluation's loss is nan"):
        pretrain("--max_steps", "1", "--learning_rate", "1e30")


# ---------------------------------------------------------------- the report


def test_a_line_of_the_report_fits_100_columns(packed_data, tmp_path, capsys):
    args = run_pretrain.parse_arguments(training_arguments(packed_data, tmp_path))
    report = run_pretrain.Report(args, run_pretrain.load_data(args, run_pretrain.RECIPES["roberta"]))
    window = {"loss_sum": 123.4, "num_masked": 10.0, "skipped_updates": 0}
    window.update(updates=100, tokens=26_214_400, seconds=100.0, data_seconds=1.0, flops=1e15)
    run = run_of(None, global_step=123_400, window=window)
    run.optimizer, run.total_steps = SimpleNamespace(get_lr=lambda: 1.2345e-4), 1_000_000
    report.log_training(run, {"grad_norm": 1.0, "loss_scale": 1.0})
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "step 123,400/1,000,000  loss 12.340  rate 1.23e-04  262,144 tokens/s  10.1 days left"
    assert len(line) <= 100
    [record] = metrics(tmp_path, "train")
    expected = {"steps_per_second": 1, "tokens_per_second": 262_144, "tflops": 10, "data_wait_percent": 1}
    assert {name: record[name] for name in expected} == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a closed pipe", "/dev/full"])
def test_a_run_goes_on_whatever_becomes_of_what_it_prints(packed_data, tmp_path, output):
    if output == "a closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(output, os.O_WRONLY)
    arguments = training_arguments(packed_data, tmp_path, "roberta-en-tiny")
    command = [sys.executable, "run_pretrain.py", *arguments, "--max_steps", "2"]
    run = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert run.returncode == 0, run.stderr
    assert len(metrics(tmp_path, "train")) == 2 and (tmp_path / "paddle_2").is_dir()


def read_or_nothing(terminal) -> str:
    try:
        return terminal.readline()
    except OSError:  # how Linux ends it
        return ""


@pytest.mark.slow
def test_a_terminal_shows_bars_for_training_and_evaluations_and_a_home_is_not_needed(packed_data, tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    arguments = training_arguments(packed_data, tmp_path / "ckp", "roberta-en-tiny")
    command = [sys.executable, "run_pretrain.py", *arguments, "--max_steps", "2"]
    environment = {**os.environ, "HOME": "/dev/null"}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    with open(ours, errors="replace") as terminal:
        shown = "".join(iter(lambda: read_or_nothing(terminal), ""))
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 0, shown
    assert "2/2" in shown and "evaluating: " in shown and "Traceback" not in shown
    assert f"done: {tmp_path}/ckp/paddle_2" in printed and "\r" not in printed


def test_metrics_and_visualdl_hold_what_was_promised(pretrain):
    output = pretrain("--max_steps", "3")
    record = metrics(output, "train")[-1]
    assert all(math.isfinite(value) for name, value in record.items() if name != "event")
    assert {"loss", "learning_rate", "grad_norm", "steps_per_second", "tokens_per_second", "tflops"} < set(record)
    assert {"data_wait_percent", "eta_hours", "skipped_updates", "loss_scale"} < set(record)
    shown = read_visualdl(output / "visualdl/from_0")
    for name in set(record) - {"event", "step"}:
        assert shown[f"train/{name}"] == pytest.approx({r["step"]: r[name] for r in metrics(output, "train")}, rel=1e-6)
    assert {"evaluation/eval_loss", "evaluation/perplexity", "evaluation/accuracy"} < set(shown)


def test_tflops_count_the_matrix_products_forward_and_twice_that_backward(pretrain, packed_data):
    """Two operations for each weight of a matrix and token, attention's two products, the head of masked tokens."""
    output, vocabulary = pretrain("--max_steps", "3"), load(packed_data)[0].vocab_size
    layers, width, _ = run_pretrain.ARCHITECTURES[TINY]
    layer = 2 * (4 * width**2 + 2 * width * 4 * width) + 2 * 2 * 32 * width
    low, high = (3 * (layers * layer + share * 2 * (width**2 + width * vocabulary)) for share in (0.08, 0.22))
    for record in metrics(output, "train"):
        assert low < record["tflops"] * 1e12 / record["tokens_per_second"] < high


def test_visualdl_shows_each_start_of_a_run_as_a_curve_of_its_own(pretrain):
    arguments = ("--max_steps", "4", "--save_steps", "2")
    output = pretrain(*arguments)
    shutil.rmtree(output / "paddle_4")
    pretrain(*arguments, "--resume_from_checkpoint", "auto")
    assert sorted(path.name for path in (output / "visualdl").iterdir()) == ["from_0", "from_2"]
    for folder, training, evaluations in (("from_0", [1, 2, 3, 4], [2, 4]), ("from_2", [3, 4], [2, 4])):
        shown = read_visualdl(output / "visualdl" / folder)
        for event, name, steps in (("train", "loss", training), ("evaluation", "perplexity", evaluations)):
            expected = {r["step"]: r[name] for r in metrics(output, event) if r["step"] in steps}
            assert list(expected) == steps and shown[f"{event}/{name}"] == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------- arguments and bad starts


def test_the_script_leaves_out_datasets_and_paddlenlps_other_parts_and_who_imports_it_has_them(packed_data, tmp_path):
    """A start of training is 1.4 seconds shorter without them, and takes 130 MB less."""
    arguments = [*training_arguments(packed_data, tmp_path / "ckp", "roberta-en-tiny"), "--max_steps", "1"]
    script = f"""
import os, runpy, sys
def show_and_exit(status, exit=os._exit):
    import paddlenlp
    others = {{"datasets", "pandas", "fastapi", "sklearn", "paddlenlp.taskflow", "paddlenlp.trainer"}}
    print(paddlenlp.__version__, sorted(others & set(sys.modules)), flush=True)
    exit(status)
os._exit = show_and_exit
sys.argv = ["run_pretrain.py", *{arguments}, "--max_eval_rows", "8"]
runpy.run_path("run_pretrain.py", run_name="__main__")
"""
    imported = """
import run_pretrain
from paddlenlp import Taskflow, trainer, transformers
assert issubclass(run_pretrain.RobertaForMaskedLM, transformers.RobertaForMaskedLM)
print(trainer.Trainer.__name__)
"""
    for program, expected in ((script, "2.8.1 []"), (imported, "Trainer")):
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == [expected], done.stderr[-2000:]


def test_the_original_pages_command_parses_character_for_character():
    args = run_pretrain.parse_arguments(PAGE_COMMAND.replace('"', "").split())
    assert (args.batch_size, args.learning_rate, args.warmup_steps, args.max_steps, args.amp) == (
        16,
        1e-4,
        10000,
        -1,
        True,
    )


class Recorded(argparse.Namespace):
    """Arguments that remember which of them were read."""

    def __getattribute__(self, name: str):
        if not name.startswith("__"):
            type(self).read.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("max_steps", ["1", "0"], ids=["training", "evaluation"])
def test_every_flag_is_read(pretrain, monkeypatch, max_steps):
    """In a training run all of them; in an evaluation at least those that are not for training alone."""
    real, Recorded.read = run_pretrain.parse_arguments, set()
    monkeypatch.setattr(run_pretrain, "parse_arguments", lambda argv: Recorded(**vars(real(argv))))
    pretrain("--max_steps", max_steps, "--amp", "True")
    flags, for_training = set(vars(real([]))), run_pretrain.build_parser().for_training()
    not_read = flags - Recorded.read - (for_training if max_steps == "0" else set())
    assert len(Recorded.read & flags) > 15 and not_read <= ({"resume_from_checkpoint"} if max_steps == "0" else set())


def test_every_help_says_something():
    shown = run_script("run_pretrain.py", "--help").stdout
    for action in run_pretrain.build_parser()._actions:
        assert re.search(rf"^  (-h, )?{action.option_strings[-1]}\b", shown, re.MULTILINE), action.option_strings
        assert len(action.help.split()) > 2
    words = " ".join(shown.split())
    assert "(default: 10000)" in words and "default: None" not in words


def test_a_run_takes_all_cores_or_its_share_of_them_unless_it_is_told(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda only_physical_cores: 8)
    for told, ranks, threads in ((None, 1, "8"), (None, 2, "4"), ("3", 2, "3")):
        monkeypatch.setenv("OMP_NUM_THREADS", told or "")
        if told is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", str(ranks))
        utils.prepare_for_paddle()
        assert os.environ["OMP_NUM_THREADS"] == threads
    # Paddle's launcher hands on a 1 that nobody gave: test_distributed.py has a real one.
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    for is_launchers, threads in ((True, "4"), (False, "1")):
        monkeypatch.setattr(utils, "is_set_by_launcher", lambda: is_launchers)  # noqa: B023
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        utils.prepare_for_paddle()
        assert os.environ["OMP_NUM_THREADS"] == threads


def break_data(data, tmp_path, how):
    """A copy of the data set that is damaged in one way."""
    copy = tmp_path / "broken"
    shutil.copytree(data, copy)
    how(copy)
    return copy


def drop_column(data):
    datasets.load_from_disk(str(data)).remove_columns("special_tokens_mask").save_to_disk(str(data / "new"))
    for split in ("train", "validation"):
        shutil.rmtree(data / split)
        shutil.move(data / "new" / split, data / split)


def replace_rows(data, tmp_path, name: str, change):
    """A copy of the data set, with one split changed."""
    splits = datasets.load_from_disk(str(data))
    splits[name] = change(splits[name])
    splits.save_to_disk(str(tmp_path / "changed"))
    shutil.copytree(data / "tokenizer", tmp_path / "changed" / "tokenizer")
    return tmp_path / "changed"


def nothing(split):
    return split.filter(lambda row: False)


def all_special(split):
    """The rows, without a position that could be predicted."""
    return split.map(lambda row: {"special_tokens_mask": [True] * len(row["input_ids"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (all_special, "no validation token was chosen for prediction in validation, [0-9]+ rows: hold out more text"),
        (nothing, "no rows to evaluate: hold out more text"),
    ],
)
def test_validation_rows_that_give_no_result_are_refused(pretrain, packed_data, tmp_path, change, message):
    output = tmp_path / "ckp"
    with pytest.raises(UserError, match=message):
        pretrain("--max_steps", "1", data=replace_rows(packed_data, tmp_path, "validation", change), output=output)
    assert not output.exists()  # at the start: after an hour, the run could neither end nor go on


BROKEN_DATA = {
    "not a data set": lambda data: (data / "dataset_dict.json").unlink(),
    "damaged.*special_tokens_mask": drop_column,
    "damaged.*data/tokenizer|damaged.*broken/tokenizer": lambda data: shutil.rmtree(data / "tokenizer"),
    "damaged.*tokenizer_config.json": lambda data: (data / "tokenizer/tokenizer_config.json").unlink(),
    "not a data set of create_data.py, or damaged": lambda data: (data / "tokenizer/vocab.json").write_text("{"),
    "damaged.*merges.txt": lambda data: (data / "tokenizer/merges.txt").unlink(),
    "beyond the tokenizer's vocabulary of 30[01]": lambda data: (data / "tokenizer/vocab.json").write_text(
        json.dumps(
            {token: i for token, i in json.loads((data / "tokenizer/vocab.json").read_text()).items() if i < 300}
        )
    ),
    "or damaged": lambda data: os.truncate(data / "train/data-00000-of-00001.arrow", 1000),
}


@pytest.mark.parametrize("message", BROKEN_DATA)
def test_broken_data_is_named(pretrain, packed_data, tmp_path, message):
    """Also where there is no data_card.json, whose checksums tell most of it."""
    data = break_data(packed_data, tmp_path, BROKEN_DATA[message])
    with pytest.raises(UserError, match=r"or damaged|is not as create_data\.py wrote it"):
        pretrain(data=data)
    (data / "data_card.json").unlink()
    with pytest.raises(UserError, match=message):
        pretrain(data=data)
    assert not list(tmp_path.glob("ckp/paddle_*"))


BAD_ARGUMENTS = {
    "--input_file nowhere": "--input_file nowhere: not a data set",
    "--max_seq_length 16": "rows of 32 tokens, --max_seq_length 16: raise it, or prepare shorter ones",
    "--model_name_or_path nowhere/at/all": "cannot load the model nowhere/at/all",
    "--num_train_epochs 0": "gives no update",
    "--num_train_epochs 0 --max_steps 2": "gives no update: raise it, or leave it out",
    "--warmup_steps 1000000": "longer than the training",
    "--batch_size 1000000": "a global batch of 1000000 rows, but",
    "--learning_rate -1": "--learning_rate: -1 is not in the range from 0",
    "--learning_rate nan": "--learning_rate: nan is not",
    "--weight_decay inf": "--weight_decay: inf is not",
    "--adam_epsilon 0": "--adam_epsilon: 0 is not",
    "--batch_size 0": "--batch_size: 0 is not in the range from 1",
    "--amp yes": "--amp: 'yes' is neither True nor False",
    "--max_grad_nor 1": "unrecognized arguments: --max_grad_nor",
    "--device xpu": "--device xpu: Paddle",
    "--lr_scheduler polynomial": "--lr_scheduler: invalid choice",
    "--max_steps 1 --eval_mlm_probability 1e-9": "no validation token was chosen for prediction",
    "--max_steps 0 --eval_mlm_probability 1e-9": "no validation token was chosen for prediction",
    "--resume_from_checkpoint nowhere": "cannot resume from nowhere",
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_a_bad_start_is_one_line_that_names_it(pretrain, arguments):
    with pytest.raises(UserError) as error:
        pretrain(*arguments.split())
    assert BAD_ARGUMENTS[arguments] in str(error.value) and "\\n" not in str(error.value)


def test_a_users_mistake_is_one_line_on_stderr_and_exit_status_2(packed_data, tmp_path):
    run = run_script(
        "run_pretrain.py", *training_arguments(packed_data, tmp_path / "ckp")[2:], "--num_train_epochs", "0"
    )
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if "error" in line or "Traceback" in line] == [
        run.stderr.splitlines()[-1]
    ]
    assert run.stderr.splitlines()[-1].startswith("error: nothing to train: --num_train_epochs")


def test_a_configuration_without_a_tokenizer_is_told_what_to_set(pretrain, tmp_path):
    config = {"model_type": "roberta", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "new").mkdir()
    for more, message in (
        ({}, "its pad_token_id is 0, in the data 1: set it to 1 in its config.json, to train it from scratch"),
        (
            {"vocab_size": 300},
            "has vocab_size 300, the data 400 tokens: set it to 400 in its config.json, or let it grow",
        ),
        ({"vocab_size": 400}, None),
    ):
        config |= more
        (tmp_path / "new/config.json").write_text(json.dumps(config))
        arguments = ["--max_steps", "1", "--model_name_or_path", str(tmp_path / "new")]
        with pytest.raises(UserError, match=message) if message else nullcontext():
            pretrain(*arguments)
        config["pad_token_id"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 300}, "has vocab_size 300, the data 400 tokens: let it grow by --resize_model True"),
        ({"vocab_size": 500}, r"word_embeddings.weight is \[400, 32\], but should be \[500, 32\]"),
        ({"intermediate_size": 64}, r"linear1.weight is \[32, 128\], but should be \[32, 64\]"),
        ({"max_position_embeddings": 20}, "rows of 32 tokens, and the positions of .* are enough for 18"),
        ({"pad_token_id": 0}, "its pad_token_id is 0, in the data 1: prepare the data with --tokenizer_name"),
    ],
)
def test_weights_that_do_not_suit_the_data_or_their_configuration_are_refused(pretrain, tmp_path, change, message):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **change}))
    (checkpoint / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=message):
        pretrain("--max_steps", "1", "--model_name_or_path", str(checkpoint), output=tmp_path / "never")


@pytest.mark.parametrize("arguments", [("--max_steps", "0"), ("--max_steps", "9")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_end_a_run(pretrain, tmp_path, arguments, value):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    weights = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    weights["lm_head.dense.bias"][3] = value
    safetensors.numpy.save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"evaluation's loss is nan|5 updates in a row, .* were not finite"):
        pretrain(*arguments, "--model_name_or_path", str(checkpoint), output=tmp_path / "never")


def test_weights_of_another_tokenizer_of_the_same_size_are_refused(pretrain, tmp_path):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    (tmp_path / "other.txt").write_text(text_of_words(300, seed=1))
    other = create(tmp_path / "other.txt", tmp_path / "other")
    with pytest.raises(UserError, match="has another tokenizer than the data"):
        pretrain("--model_name_or_path", str(checkpoint), data=other, output=tmp_path / "never")


def test_dropout_is_the_flags_also_where_weights_are_continued(pretrain, tmp_path, monkeypatch):
    first, models = pretrain("--max_steps", "1") / "paddle_1", []
    real = run_pretrain.load_model
    monkeypatch.setattr(run_pretrain, "load_model", lambda *source, **_: models.append(real(*source)) or models[0])
    more = ["--max_steps", "1", "--learning_rate", "0", "--model_name_or_path", str(first), "--dropout", "0.3"]
    second = pretrain(*more, output=tmp_path / "second") / "paddle_1"
    layers = models[0][0].roberta.encoder.layers
    assert {p for layer in layers for p in (layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout)} == {0.3}
    assert json.loads((second / "config.json").read_text())["hidden_dropout_prob"] == 0.3
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_directory_with_a_configuration_alone_is_trained_from_scratch(pretrain, tmp_path, capsys):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "mine").mkdir()
    mine = {**config, "num_hidden_layers": 3, "intermediate_size": 48, "hidden_dropout_prob": 0.2}
    (tmp_path / "mine/config.json").write_text(json.dumps(mine))
    output = pretrain("--max_steps", "1", "--model_name_or_path", str(tmp_path / "mine"), output=tmp_path / "second")
    assert re.search(rf"model: {tmp_path}/mine, .* training from scratch\n", capsys.readouterr().out)
    assert metrics(output, "train")[0]["loss"] == pytest.approx(math.log(400), rel=0.03)
    weights = safetensors.numpy.load_file(output / "paddle_1" / "model.safetensors")
    assert weights["roberta.encoder.layers.2.linear1.weight"].shape == (32, 48)
    assert json.loads((output / "paddle_1" / "config.json").read_text())["hidden_dropout_prob"] == 0.2


def test_checkpoints_of_another_run_are_never_touched(pretrain, tmp_path):
    output, other = pretrain("--max_steps", "2"), pretrain("--max_steps", "1", output=tmp_path / "other")
    before = (output / "paddle_2" / "SHA256SUMS").read_text()
    for arguments in ([], ["--resume_from_checkpoint", str(other / "paddle_1")]):
        with pytest.raises(UserError, match=f"--output_dir {output} holds checkpoints"):
            pretrain("--max_steps", "2", *arguments)
        assert (output / "paddle_2" / "SHA256SUMS").read_text() == before


def test_directories_with_names_like_a_checkpoints_are_none(tmp_path):
    for name in ("paddle_2", "paddle_\u00b2", "paddle_x", "paddle_"):
        (tmp_path / name).mkdir()
    assert run_pretrain.checkpoints_in(str(tmp_path)) == {2: str(tmp_path / "paddle_2")}


def test_an_output_directory_that_is_a_file_is_named(pretrain, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path}/file is in use, or no directory"):
        pretrain("--max_steps", "1", output=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_run_in_one_output_directory_is_refused(pretrain, monkeypatch):
    refused = []

    def start_another(run):
        with pytest.raises(UserError) as error:
            pretrain("--max_steps", "2", "--resume_from_checkpoint", "auto")
        refused.append(str(error.value))

    around_updates(monkeypatch, before=start_another)
    output = pretrain("--max_steps", "2")
    assert refused == [f"{output} is in use, or no directory: wait, or choose another"] * 2
    assert [record["step"] for record in metrics(output, "train")] == [1, 2]


def whole_state(**changes):
    return lambda state: json.dumps({**state, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: "{}", "state.json is damaged"),
        (lambda state: "[1, 2]", "state.json is damaged"),
        (lambda state: "\x00\xff garbage", "state.json is damaged"),
        (whole_state(identity=None), "state.json is damaged"),
        (whole_state(global_step="1"), "state.json is damaged"),
        (
            whole_state(global_step=9),
            "it has done 9 of 1 updates: give --max_steps 9 or more, without --num_train_epochs",
        ),
        (whole_state(global_step=-1), "state.json is damaged.*global_step is -1"),
        (whole_state(window=[]), r"state.json is damaged.*window is \[\]"),
    ],
)
def test_a_state_that_makes_no_sense_is_named_though_its_checksum_is_right(pretrain, change, message):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    path = checkpoint / "training_state" / "state.json"
    path.write_text(change(json.loads(path.read_text())))
    utils.write_checksums(str(checkpoint))
    with pytest.raises(UserError, match=message):
        pretrain("--max_steps", "1", "--resume_from_checkpoint", "auto")


def test_an_interrupt_while_paddle_is_imported_is_no_traceback(tmp_path):
    (tmp_path / "paddle.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    run = run_script("run_pretrain.py", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert run.returncode == -signal.SIGINT and run.stdout + run.stderr == ""


# ---------------------------------------------------------------- rows


def test_batches_hold_the_samplers_rows_with_their_masks(packed_data):
    tokenizer, rows = load(packed_data)
    sampler, collator = utils.UpdateSampler(len(rows), 64, seed=3), DataCollatorMLM(tokenizer)
    batches = list(run_pretrain.batches_of(rows, sampler.batches(0, 50), collator))
    expected = [collator([rows[key] for key in keys]) for keys in sampler.batches(0, 50)]
    assert len(batches) == len(expected) == 50 > sampler.updates_per_epoch  # two epochs
    for batch, wanted in zip(batches, expected):
        for name, array in wanted.items():
            assert np.array_equal(batch[name].numpy(), array)


@pytest.fixture
def two_data_sets(packed_data, tmp_path):
    """Two with one tokenizer and other rows."""
    (tmp_path / "more.txt").write_text(text_of_words(100, seed=5))
    more = create(tmp_path / "more.txt", tmp_path / "more", "--tokenizer_name", str(packed_data / "tokenizer"))
    return packed_data, more


def test_several_data_sets_are_one(two_data_sets):
    splits = [datasets.load_from_disk(str(data))["train"] for data in two_data_sets]
    together = TokenRows(*(utils.open_data_set(str(data))["train"] for data in two_data_sets))
    joined = datasets.concatenate_datasets(splits)
    assert len(together) == len(joined) > max(map(len, splits))
    for row in (0, len(splits[0]) - 1, len(splits[0]), len(joined) - 1):
        item = together[3, row]
        assert item["input_ids"].tolist() == joined[row]["input_ids"] and (item["epoch"], item["row"]) == (3, row)
    assert together.shortest == together.longest == 32


def test_a_run_trains_on_all_its_data_sets_and_resumes_with_the_same_alone(pretrain, two_data_sets, tmp_path, capsys):
    arguments = ("--max_steps", "4", "--save_steps", "2", "--input_file", *map(str, two_data_sets))
    whole, resumed = pretrain(*arguments, output=tmp_path / "whole"), pretrain(*arguments)
    rows = sum(len(load(data)[1]) for data in two_data_sets)
    assert f"data: {rows:,} rows" in capsys.readouterr().out
    shutil.rmtree(resumed / "paddle_4")
    resume = ("--resume_from_checkpoint", "auto")
    refusal = "cannot resume from .*: the data of --input_file"
    with pytest.raises(UserError, match=refusal):  # the other way round
        pretrain(*arguments[:-2], *reversed(arguments[-2:]), *resume)
    with pytest.raises(UserError, match=refusal):
        pretrain(*arguments[:-1], *resume)
    pretrain(*arguments, *resume)
    assert (whole / "paddle_4/model.safetensors").read_bytes() == (resumed / "paddle_4/model.safetensors").read_bytes()
    arrow = two_data_sets[1] / "train" / "data-00000-of-00001.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    shutil.rmtree(resumed / "paddle_4")
    with pytest.raises(UserError, match=f"{arrow} is not as create_data.py wrote it"):
        pretrain(*arguments, *resume)


def test_a_data_set_that_is_given_twice_is_said(pretrain, two_data_sets, tmp_path, capsys):
    copy = shutil.copytree(two_data_sets[0], tmp_path / "copy")
    pretrain("--max_steps", "1", "--input_file", *map(str, [*two_data_sets, copy]))
    assert f"warning: {copy} holds the same rows as {two_data_sets[0]}: each is" in capsys.readouterr().out
    pretrain("--max_steps", "1", "--input_file", *map(str, two_data_sets), output=tmp_path / "once")
    assert "the same rows" not in capsys.readouterr().out


def test_an_initialization_of_weights_that_are_continued_is_said_to_be_unused(pretrain, tmp_path, capsys):
    checkpoint = pretrain("--max_steps", "1", "--initialization", "sinusoids") / "paddle_1"
    said = "not used, as weights are continued: --initialization"
    assert said not in capsys.readouterr().out.splitlines()
    continued = "--max_steps", "1", "--model_name_or_path", str(checkpoint), "--initialization", "sinusoids"
    pretrain(*continued, output=tmp_path / "continued")
    assert said in capsys.readouterr().out.splitlines()


def test_a_length_that_the_flag_alone_wants_is_blamed_on_the_flag(pretrain, tmp_path):
    checkpoint = str(pretrain("--max_steps", "1") / "paddle_1")
    arguments = ["--max_steps", "1", "--model_name_or_path", checkpoint, "--max_seq_length"]
    with pytest.raises(UserError, match=r"--max_seq_length 600 \(leave it out .* are enough for 512"):
        pretrain(*arguments, "600", output=tmp_path / "other")
    pretrain(*arguments, "600", "--resize_model", "True", output=tmp_path / "longer")
    pretrain(*arguments[:-1], output=tmp_path / "other")


def test_data_sets_of_other_tokenizers_are_not_mixed(pretrain, packed_data, tmp_path):
    (tmp_path / "other.txt").write_text(text_of_words(100, seed=1))
    other = create(tmp_path / "other.txt", tmp_path / "other")
    with pytest.raises(UserError, match=rf"{other}/tokenizer is another tokenizer: prepare all with .*{packed_data}"):
        pretrain("--max_steps", "1", "--input_file", str(packed_data), str(other))
