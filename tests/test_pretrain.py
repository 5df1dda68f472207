"""What run_pretrain.py promises of a run: its update, its checkpoints, what it prints and refuses."""

import contextlib
import json
import math
import os
import re
import shutil

import datasets
import numpy as np
import paddle
import pytest
from conftest import ROOT, TINY, create, metrics, run_script, text_of_words, training_arguments
from paddlenlp import transformers

import run_pretrain
from run_pretrain import RobertaForMaskedLM, build_config, learning_rate_at, masked_loss
from utils import DataCollatorMLM, TokenRows, UserError

PAGE_COMMAND = """--model_name_or_path roberta-en-base --batch_size 16 --learning_rate 1e-4 --weight_decay 1e-2
--warmup_steps 10000 --num_train_epochs 3 --input_file wiki --output_dir ckp/ --logging_steps 100 --save_steps 10000
--max_steps -1 --device gpu --max_seq_length 512 --amp True"""


def load(data, split: str = "train"):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(data / "tokenizer"))
    return tokenizer, TokenRows(datasets.load_from_disk(str(data))[split])


@pytest.fixture
def model_and_batch(monkeypatch, packed_data):
    """A tiny model without dropout, and a batch of 8 packed rows as Paddle tensors."""
    monkeypatch.setitem(run_pretrain.ARCHITECTURES, TINY, (2, 32, 2))
    tokenizer, rows = load(packed_data)
    paddle.seed(0)
    model = RobertaForMaskedLM(build_config(TINY, tokenizer, 32))
    model.eval()
    batch = DataCollatorMLM(tokenizer)([rows[0, i] for i in range(8)])
    return model, {name: paddle.to_tensor(array) for name, array in batch.items()}


# ---------------------------------------------------------------- model and loss


def test_the_masked_only_head_gives_the_loss_and_gradients_of_full_logits(model_and_batch):
    model, batch = model_and_batch
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
    """Of the masked loss, with dropout as the model's mode has it; seeded."""
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
def test_the_fast_paths_give_the_loss_and_gradients_of_paddlenlps_encoder(model_and_batch, monkeypatch, padded):
    model, batch = model_and_batch
    batch, model.padded = ragged(batch) if padded else batch, padded
    fast = loss_and_gradients(model, batch)
    monkeypatch.setattr(run_pretrain, "FAST_PATHS", False)
    assert_equal_losses_and_gradients(fast, loss_and_gradients(model, batch))


@pytest.mark.parametrize("kind", ["flash", "plain"])
def test_every_kind_of_attention_gives_the_same_loss_and_gradients(model_and_batch, monkeypatch, kind):
    model, batch = model_and_batch
    model.padded = False
    rowwise = loss_and_gradients(model, batch)
    used = []
    if kind == "flash":  # Paddle computes it on a CPU by other means
        monkeypatch.setattr(run_pretrain, "has_flash_attention", lambda query, mask: used.append(mask) or True)
    else:

        class Plain:
            def apply(query, key, value, mask, dropout, num_heads):
                used.append(mask)
                heads = (x.reshape([8, 32, num_heads, -1]).transpose([0, 2, 1, 3]) for x in (query, key, value))
                query, key, value = heads
                context = paddle.matmul(run_pretrain.attention_weights(query, key, mask), value)
                return context.transpose([0, 2, 1, 3]).reshape([8, 32, -1])

        monkeypatch.setattr(run_pretrain, "RowwiseAttention", Plain)
    assert_equal_losses_and_gradients(loss_and_gradients(model, batch), rowwise)
    assert used == [None, None]  # once in each layer, without a mask


def test_flash_attention_is_for_half_precision_without_padding(monkeypatch):
    half, single = paddle.zeros([1], dtype="float16"), paddle.zeros([1])
    monkeypatch.setattr(run_pretrain, "has_ampere", lambda: True)
    suits = [run_pretrain.has_flash_attention(*case) for case in ((half, None), (single, None), (half, single))]
    monkeypatch.setattr(run_pretrain, "has_ampere", lambda: False)
    assert [*suits, run_pretrain.has_flash_attention(half, None)] == [True, False, False, False]


def test_attention_with_dropout_drops_as_often_as_asked_and_has_the_right_gradients():
    rng = np.random.default_rng(0)
    inputs = [paddle.to_tensor(rng.normal(size=(3, 5, 8))) for _ in range(3)]  # an odd length, in float64
    directions = [paddle.to_tensor(rng.normal(size=(3, 5, 8))) for _ in range(3)]
    weight = paddle.to_tensor(rng.normal(size=(3, 5, 8)))

    def loss(shift: float):
        paddle.seed(3)
        moved = [x + shift * direction for x, direction in zip(inputs, directions)]
        return (run_pretrain.RowwiseAttention.apply(*moved, None, 0.3, 2) * weight).sum()

    for x in inputs:
        x.stop_gradient = False
    loss(0.0).backward()
    slope = sum((x.grad * direction).sum().item() for x, direction in zip(inputs, directions))
    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)).item() / 2e-5, rel=1e-6)
    assert loss(0.0).item() == loss(0.0).item()
    query, ones = paddle.zeros([8, 64, 4 * 8]), paddle.ones([8, 64, 4 * 8])
    kept = run_pretrain.RowwiseAttention.apply(query, query, ones, None, 0.3, 4)[..., ::8]  # its mean is 1
    variance = 0.3 / 0.7 / 64  # of a mean of 64 equal weights, each kept with 0.7
    assert kept.mean().item() == pytest.approx(1, abs=5 * math.sqrt(variance / (8 * 4 * 64)))
    assert kept.var().item() == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("padded", [False, True])
def test_recompute_gives_the_same_gradients_with_dropout(model_and_batch, monkeypatch, padded):
    model, batch = model_and_batch
    model.padded = padded
    model.train()
    kept = loss_and_gradients(model, batch)
    real, calls = run_pretrain.encoder_layer, []
    monkeypatch.setattr(run_pretrain, "encoder_layer", lambda *layer: calls.append(1) or real(*layer))
    model.recompute = True
    anew = loss_and_gradients(model, batch)
    assert len(calls) == 4  # each of the two layers forward, and once more backward
    assert_equal_losses_and_gradients(anew, kept, rtol=1e-6)
    model.eval()
    assert loss_and_gradients(model, batch)[0] != kept[0]  # there was dropout


def test_a_mask_is_built_only_where_rows_are_padded(pretrain, packed_data, ragged_data, tmp_path, monkeypatch):
    real, masks = run_pretrain.attend, []
    monkeypatch.setattr(
        run_pretrain, "attend", lambda *heads: masks.append(None if heads[3] is None else "mask") or real(*heads)
    )
    pretrain("--max_steps", "1", output=tmp_path / "packed")
    assert set(masks) == {None}
    masks.clear()
    pretrain("--max_steps", "1", data=ragged_data, output=tmp_path / "ragged")
    assert set(masks) == {"mask"}


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("arguments", "ampere", "printed", "scaled"),
    [
        ("", True, "amp: bfloat16, level O1, no loss scaling", False),
        ("", False, "amp: float16, level O1, loss scaling from 32768", True),
        ("--amp_dtype float16 --amp_level O2", True, "amp: float16, level O2, loss scaling", True),
        ("--amp False", True, "", False),
    ],
)
def test_the_precision_on_a_gpu(monkeypatch, capsys, arguments, ampere, printed, scaled):
    monkeypatch.setattr(run_pretrain, "has_ampere", lambda: ampere)
    enabled = []
    monkeypatch.setattr(paddle.amp, "GradScaler", lambda enable, init_loss_scaling: enabled.append(enable))
    args = run_pretrain.parse_arguments(["--device", "gpu", *arguments.split()])
    run_pretrain.set_precision(args)
    run_pretrain.build_scaler(args)
    assert printed in capsys.readouterr().out
    assert enabled == [scaled]


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(run_pretrain, "has_ampere", lambda: False)
    with pytest.raises(UserError, match="take float16"):
        run_pretrain.set_precision(run_pretrain.parse_arguments(["--device", "gpu", "--amp_dtype", "bfloat16"]))


def test_with_weights_in_half_precision_the_checkpoint_holds_the_float32_ones(
    model_and_batch, packed_data, monkeypatch, tmp_path
):
    model, _ = model_and_batch
    args = run_pretrain.parse_arguments(training_arguments(ROOT, ROOT))
    args.amp_dtype = "float16"
    optimizer = run_pretrain.build_optimizer(model, args)
    optimizer._multi_precision = True  # as paddle.amp.decorate sets it, which does nothing on a CPU
    monkeypatch.setattr(paddle.amp, "decorate", lambda model, optimizer, **options: model.to(dtype="float16"))
    exact = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    run_pretrain.use_half_precision_weights(model, optimizer, args)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {paddle.float16}
    masters = {p.name: optimizer._create_master_weight(p) for p in model.parameters()}
    assert all(master.name == name and master.dtype == paddle.float32 for name, master in masters.items())  # and so the
    assert not any(master.stop_gradient is False for master in masters.values())  # moments have their names of level O1
    scaler = paddle.amp.GradScaler(enable=False)
    run_pretrain.save_checkpoint(str(tmp_path / "c"), model, str(packed_data / "tokenizer"), optimizer, scaler, {})
    loaded = transformers.RobertaForMaskedLM.from_pretrained(str(tmp_path / "c")).state_dict()
    assert all(np.array_equal(loaded[name].numpy(), exact[name]) for name in exact)


# ---------------------------------------------------------------- weights and schedule


def test_padding_does_not_change_the_logits_of_unpadded_positions(model_and_batch):
    model, batch = model_and_batch
    ids = batch["input_ids"][:1]
    padded = paddle.concat([ids, paddle.full([1, 9], model.config.pad_token_id, dtype="int64")], axis=1)
    np.testing.assert_allclose(model(padded)[:, :32].numpy(), model(ids).numpy(), atol=1e-5)


def test_a_batch_without_a_masked_token_has_no_loss_and_no_gradient(model_and_batch):
    model, batch = model_and_batch
    nothing = {
        "input_ids": batch["input_ids"],
        "labels": paddle.full_like(batch["labels"], -100),
        "masked_positions": paddle.zeros([1], dtype="int64"),
    }
    loss, _, _ = masked_loss(model, nothing)
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.numpy().any() for p in model.parameters())


def test_every_value_of_the_architecture_is_robertas(packed_data):
    tokenizer, _ = load(packed_data)
    config = build_config("roberta-en-base", tokenizer, 512)
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
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate_at(step, 1.0, 4, 10) for step in range(1, 11)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert learning_rate_at(1, 1.0, 0, 10) == 0.9


def test_weight_decay_spares_biases_and_layer_norms(model_and_batch, monkeypatch):
    model, _ = model_and_batch
    args = run_pretrain.parse_arguments([*training_arguments(ROOT, ROOT), "--weight_decay", "0.5"])
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    optimizer = run_pretrain.build_optimizer(model, args)
    (0 * sum(p.sum() for p in model.parameters())).backward()  # no gradient: only decay moves a weight
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 1e-3 * 0.5) if parameter.ndim >= 2 else before[name]
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=1e-6, err_msg=name)


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
    assert any("amp" in line and "float32" in line for line in shown)
    assert str(output / "paddle_60") in shown[-1] and f"{evaluations[1]['eval_loss']:.4f}" in shown[-1]
    assert "perplexity" in shown[-1]
    [yardsticks] = [line for line in shown if line.startswith("yardsticks")]
    assert all(f"{evaluations[1][key]:.3f}" in yardsticks for key in ("unigram_entropy", "loss_without_context"))


def test_from_pretrained_gives_the_logits_of_the_model_that_was_saved(pretrain, packed_data, monkeypatch):
    saved = {}
    real = run_pretrain.save_checkpoint

    def save_and_remember(path, model, *rest):
        real(path, model, *rest)
        _, rows = load(packed_data, "validation")
        saved["ids"] = paddle.to_tensor(np.stack([rows[0, i]["input_ids"] for i in range(4)]).astype("int64"))
        model.eval()
        saved["logits"] = model(saved["ids"]).numpy()
        model.train()

    monkeypatch.setattr(run_pretrain, "save_checkpoint", save_and_remember)
    checkpoint = str(pretrain("--max_steps", "5") / "paddle_5")
    for kind in (transformers.RobertaForMaskedLM, transformers.AutoModelForMaskedLM):
        model = kind.from_pretrained(checkpoint)
        model.eval()
        assert np.array_equal(model(saved["ids"]).numpy(), saved["logits"])
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


def test_the_end_is_max_steps_or_the_epochs_whichever_comes_first(pretrain, tmp_path, packed_data):
    updates_per_epoch = len(load(packed_data)[1]) // 64
    assert updates_per_epoch > 3
    arguments = ("--batch_size", "32", "--gradient_accumulation_steps", "2", "--num_train_epochs", "2")
    whole = pretrain(*arguments, output=tmp_path / "whole")
    assert metrics(whole, "train")[-1]["step"] == 2 * updates_per_epoch
    assert metrics(pretrain(*arguments, "--max_steps", "3"), "train")[-1]["step"] == 3


def test_workers_do_not_change_the_run(pretrain, tmp_path):
    runs = [pretrain("--max_steps", "4", "--num_workers", n, output=tmp_path / n) for n in "02"]
    losses = [[record["loss"] for record in metrics(run, "train")] for run in runs]
    assert losses[0] == losses[1]


def test_metrics_and_visualdl_hold_what_was_promised(pretrain):
    output = pretrain("--max_steps", "3")
    record = metrics(output, "train")[-1]
    assert {"loss", "learning_rate", "grad_norm", "steps_per_second", "tokens_per_second", "tflops"} < set(record)
    assert {"data_wait_percent", "eta_hours", "skipped_updates", "loss_scale", "peak_memory_gb"} < set(record)


def test_visualdl_shows_a_resumed_run_from_its_first_step(pretrain):
    from visualdl import LogReader

    arguments = ("--max_steps", "4", "--save_steps", "2")
    output = pretrain(*arguments)
    shutil.rmtree(output / "paddle_4")
    pretrain(*arguments, "--resume_from_checkpoint", "auto")
    (file,) = (output / "visualdl").iterdir()  # of several VisualDL shows one
    reader = LogReader(file_path=str(file))
    for event, name in (("train", "loss"), ("evaluation", "perplexity")):
        shown = {point.id: point.value for point in reader.get_data("scalar", f"{event}/{name}")}
        assert shown == pytest.approx({record["step"]: record[name] for record in metrics(output, event)}, rel=1e-6)
    assert len(shown) == 2


# ---------------------------------------------------------------- numbers that are not finite


class StandInScaler:
    """Behaves as paddle.amp.GradScaler does on a GPU, which on a CPU disables itself: fixed scale, skips infinities."""

    def __init__(self, enable=True, init_loss_scaling=1024.0):
        self._scale, self.found_inf, self.skipped, self._optimizer = init_loss_scaling, False, 0, None

    def is_enable(self):
        return True

    def scale(self, loss):
        return loss * self._scale

    def unscale_(self, optimizer):
        gradients = [p.grad for p in optimizer._parameter_list]
        with paddle.no_grad():
            for gradient in gradients:
                gradient.scale_(1 / self._scale)
        self.found_inf = not all(bool(paddle.isfinite(gradient).all()) for gradient in gradients)

    def step(self, optimizer):
        if self.found_inf:
            self.skipped += 1
        else:
            optimizer.step()

    def update(self):
        self._scale = self._scale / 2 if self.found_inf else self._scale

    def state_dict(self):
        return {"scale": np.array([self._scale], dtype=np.float32), "skipped": self.skipped}

    def load_state_dict(self, state):
        self._scale, self.skipped = float(state["scale"][0]), state["skipped"]


@contextlib.contextmanager
def infinite_loss_at(monkeypatch, steps: set):
    """Makes the loss of one micro-batch infinite in the given updates (counted from 0)."""
    real_update, real_loss, here = run_pretrain.train_update, run_pretrain.masked_loss, {}

    def update(model, optimizer, scaler, batches, step, *rest):
        here["bad"] = step in steps
        return real_update(model, optimizer, scaler, batches, step, *rest)

    def loss(model, batch):
        value, *rest = real_loss(model, batch)
        bad, here["bad"] = here.get("bad"), False
        return (value * float("inf") if bad else value), *rest

    with monkeypatch.context() as patch:
        patch.setattr(run_pretrain, "train_update", update)
        patch.setattr(run_pretrain, "masked_loss", loss)
        yield


@pytest.mark.parametrize("scaler", [None, StandInScaler])
def test_a_non_finite_update_never_reaches_the_weights(pretrain, monkeypatch, scaler):
    if scaler:
        monkeypatch.setattr(paddle.amp, "GradScaler", scaler)
    weights, real_update = [], run_pretrain.train_update

    def remember(model, *rest):
        before = [p.numpy().copy() for p in model.parameters()]
        result = real_update(model, *rest)
        after = [p.numpy() for p in model.parameters()]
        weights.append(all(map(np.array_equal, before, after)))
        assert all(np.isfinite(a).all() for a in after)
        return result

    monkeypatch.setattr(run_pretrain, "train_update", remember)
    with infinite_loss_at(monkeypatch, {2}):
        output = pretrain("--max_steps", "6", "--gradient_accumulation_steps", "2")
    assert weights == [False, False, True, False, False, True]  # the last has learning rate 0
    records = metrics(output, "train")
    assert [record["skipped_updates"] for record in records] == [0, 0, 1, 0, 0, 0]
    if scaler:
        assert [record["loss_scale"] for record in records] == [2.0**15] * 2 + [2.0**14] * 4


def test_five_non_finite_updates_in_a_row_stop_the_run(pretrain, monkeypatch):
    bad = {4, 6, 7, 8, 9, 10}
    with infinite_loss_at(monkeypatch, bad), pytest.raises(UserError) as error:
        pretrain("--max_steps", "20", "--save_steps", "3")
    for named in ("5 updates in a row", "step 11", "learning rate", "loss scale", "paddle_9"):
        assert named in str(error.value)


# ---------------------------------------------------------------- arguments and bad starts


def test_the_original_pages_command_parses_character_for_character():
    args = run_pretrain.parse_arguments(PAGE_COMMAND.replace('"', "").split())
    assert (args.batch_size, args.learning_rate, args.warmup_steps, args.max_steps, args.amp) == (
        16,
        1e-4,
        10000,
        -1,
        True,
    )


def test_every_flag_is_read_and_every_help_says_something():
    source = (ROOT / "run_pretrain.py").read_text()
    parser_text = run_script("run_pretrain.py", "--help").stdout
    for name in vars(run_pretrain.parse_arguments([])):
        assert f"--{name}" in parser_text
        assert re.search(rf"args\.{name}\b", source) or f" {name} " in source.replace('"', " "), name


@pytest.mark.parametrize(
    ("name", "peak"),
    [("Tesla T4", 65), ("NVIDIA T400 4GB", None), ("NVIDIA A10", 125), ("NVIDIA A100-SXM4-40GB", 312), ("A800", None)],
)
def test_the_peak_is_that_of_the_gpu_by_its_whole_name(monkeypatch, name, peak):
    assert run_pretrain.peak_tflops() is None  # on a CPU
    monkeypatch.setattr(run_pretrain.paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(run_pretrain.paddle.device.cuda, "get_device_name", lambda: name)
    assert run_pretrain.peak_tflops() == peak


def break_data(data, tmp_path, how):
    """A copy of the data set that is damaged in one way."""
    copy = tmp_path / "broken"
    shutil.copytree(data, copy)
    how(copy)
    return copy


def drop_column(data):
    datasets.DatasetDict(
        {
            name: split.remove_columns("special_tokens_mask")
            for name, split in datasets.load_from_disk(str(data)).items()
        }
    ).save_to_disk(str(data / "new"))
    for split in ("train", "validation"):
        shutil.rmtree(data / split)
        shutil.move(data / "new" / split, data / split)


BROKEN_DATA = {
    "not a data set": lambda data: (data / "dataset_dict.json").unlink(),
    "no column special_tokens_mask": drop_column,
    "holds no tokenizer": lambda data: shutil.rmtree(data / "tokenizer"),
    "tokenizer holds no tokenizer": lambda data: (data / "tokenizer/vocab.json").write_text("{"),
    "tokenizer, which create_data.py writes": lambda data: (data / "tokenizer/merges.txt").unlink(),
    "beyond its tokenizer's vocabulary": lambda data: (data / "tokenizer/vocab.json").write_text(
        json.dumps(
            {token: i for token, i in json.loads((data / "tokenizer/vocab.json").read_text()).items() if i < 300}
        )
    ),
    "data_card.json is damaged": lambda data: (data / "data_card.json").write_text("{"),
    "or damaged": lambda data: os.truncate(data / "train/data-00000-of-00001.arrow", 1000),
}


@pytest.mark.parametrize("message", BROKEN_DATA)
def test_broken_data_is_named(pretrain, packed_data, tmp_path, message):
    with pytest.raises(UserError, match=message):
        pretrain(data=break_data(packed_data, tmp_path, BROKEN_DATA[message]))
    assert not (tmp_path / "ckp").exists()


BAD_ARGUMENTS = {
    "--input_file nowhere": "nowhere: no such directory",
    "--max_seq_length 16": "rows of 32 tokens: set --max_seq_length 32",
    "--model_name_or_path nowhere/at/all": "cannot load the model nowhere/at/all",
    "--max_steps 0": "--max_steps is 0",
    "--num_train_epochs 0": "gives no update",
    "--warmup_steps 1000000": "longer than the training",
    "--batch_size 1000000": "larger than the data",
    "--learning_rate -1": "--learning_rate: -1 is not at least 0",
    "--learning_rate nan": "--learning_rate: nan is not",
    "--weight_decay inf": "--weight_decay: inf is not",
    "--adam_epsilon 0": "--adam_epsilon: 0 is not",
    "--batch_size 0": "--batch_size: 0 is not at least 1",
    "--amp yes": "--amp: 'yes' is neither True nor False",
    "--max_grad_nor 1": "unrecognized arguments: --max_grad_nor",
    "--device xpu": "--device xpu: Paddle",
    "--resume_from_checkpoint nowhere": "cannot resume from nowhere",
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_a_bad_start_is_one_line_that_names_it(pretrain, arguments):
    with pytest.raises(UserError) as error:
        pretrain(*arguments.split())
    assert BAD_ARGUMENTS[arguments] in str(error.value) and "\n" not in str(error.value)


def test_a_users_mistake_is_one_line_on_stderr_and_exit_status_2(packed_data, tmp_path):
    run = run_script("run_pretrain.py", *training_arguments(packed_data, tmp_path / "ckp")[2:], "--max_steps", "0")
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if "error" in line or "Traceback" in line] == [
        run.stderr.splitlines()[-1]
    ]
    assert run.stderr.splitlines()[-1].startswith("error: nothing to train: --max_steps is 0")


def test_weights_for_another_vocabulary_or_fewer_positions_are_refused(pretrain, packed_data, tmp_path):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    for change, message in (
        ({"vocab_size": 500}, "vocab_size 500"),
        ({"max_position_embeddings": 20}, "positions for 18"),
    ):
        changed = tmp_path / message.replace(" ", "")
        shutil.copytree(checkpoint, changed)
        config = json.loads((changed / "config.json").read_text())
        (changed / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            pretrain("--model_name_or_path", str(changed), output=tmp_path / "never")


def test_weights_of_another_tokenizer_of_the_same_size_are_refused(pretrain, tmp_path):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    (tmp_path / "other.txt").write_text(text_of_words(300, seed=1))
    other = create(tmp_path / "other.txt", tmp_path / "other")
    with pytest.raises(UserError, match="another tokenizer than the data"):
        pretrain("--model_name_or_path", str(checkpoint), data=other, output=tmp_path / "never")


def test_dropout_is_the_flags_also_where_weights_are_continued(pretrain, tmp_path, monkeypatch):
    first, models = pretrain("--max_steps", "1") / "paddle_1", []
    real = run_pretrain.load_model
    monkeypatch.setattr(run_pretrain, "load_model", lambda *source: models.append(real(*source)) or models[0])
    more = ["--max_steps", "1", "--learning_rate", "0", "--model_name_or_path", str(first), "--dropout", "0.3"]
    second = pretrain(*more, output=tmp_path / "second") / "paddle_1"
    layers = models[0].roberta.encoder.layers
    assert {p for layer in layers for p in (layer.dropout1.p, layer.dropout2.p, layer.self_attn.dropout)} == {0.3}
    assert json.loads((second / "config.json").read_text())["hidden_dropout_prob"] == 0.3
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_model_directory_without_weights_is_named(pretrain, tmp_path):
    checkpoint = pretrain("--max_steps", "1") / "paddle_1"
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot load the weights of .*paddle_1"):
        pretrain("--model_name_or_path", str(checkpoint), output=tmp_path / "never")


def test_a_disk_without_room_for_a_checkpoint_is_said_before_training(pretrain, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(run_pretrain.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="one checkpoint takes"):
        pretrain("--max_steps", "1")


def test_checkpoints_of_another_run_are_never_touched(pretrain):
    output = pretrain("--max_steps", "2")
    before = (output / "paddle_2" / "SHA256SUMS").read_text()
    with pytest.raises(UserError, match="holds checkpoints"):
        pretrain("--max_steps", "2")
    assert (output / "paddle_2" / "SHA256SUMS").read_text() == before
