"""The CPU's layers: the numbers of PaddleNLP's own, in float32 to rounding and in bfloat16 to bfloat16's."""

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import ROOT, metrics
from paddlenlp import transformers
from paddlenlp.transformers.roberta.modeling import TransposedLinear

import run_pretrain
import utils

SHAPES = [  # batch, seq, width, heads, padded
    (3, 20, 64, 2, True),
    (1, 4, 128, 2, False),
    (1, 7, 64, 1, True),
    (4, 128, 256, 8, True),
    (2, 33, 128, 2, False),
]


@pytest.fixture(autouse=True)
def onednn():
    assert utils.onednn() is not None


def model_of(width: int, heads: int, dropout: float = 0.0):
    sizes = dict(vocab_size=500, hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, pad_token_id=1)
    sizes.update(intermediate_size=4 * width, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    paddle.seed(1)
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**sizes, type_vocab_size=1))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases that are not 0, scales that are not 1
            parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    model.train()
    return model


def with_cpu_layers(model, width: int, heads: int, precision: str, dropout: float = 0.0, padded: bool = True):
    changed = model_of(width, heads, dropout)
    changed.set_state_dict(model.state_dict())
    run_pretrain.use_fast_layers(changed, "cpu", precision, padded)
    return changed


def rows_of(batch: int, seq: int, padded: bool):
    ids = np.random.default_rng(0).integers(4, 500, (batch, seq))
    if padded:  # ragged: each row ends elsewhere
        for row in range(batch):
            ids[row, seq - 1 - row :] = 1
    return paddle.to_tensor(ids)


def loss_and_gradients(model, ids, seed: int = 5) -> tuple:
    paddle.seed(seed)
    logits = model(ids)
    chosen = paddle.to_tensor(ids.numpy() > 1).flatten().nonzero().flatten()  # <pad>'s outputs mean nothing
    labels = paddle.gather(ids.flatten(), chosen)
    loss = F.cross_entropy(paddle.gather(logits.flatten(0, 1), chosen), labels, reduction="sum")
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    model.clear_gradients()
    return loss.item(), gradients


def distance(one, other) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("batch", "seq", "width", "heads", "padded"), SHAPES)
def test_the_model_computes_as_paddlenlps(batch, seq, width, heads, padded, precision):
    model, ids = model_of(width, heads), rows_of(batch, seq, padded)
    ours = with_cpu_layers(model, width, heads, precision, padded=padded)
    assert list(ours.state_dict()) and sorted(ours.state_dict()) == sorted(model.state_dict())
    assert ours.lm_head.decoder.weight is ours.roberta.embeddings.word_embeddings.weight
    expected, expected_gradients = loss_and_gradients(model, ids)
    loss, gradients = loss_and_gradients(ours, ids)
    assert loss == pytest.approx(expected, rel=1e-3 if precision == "bfloat16" else 1e-6)
    for name, gradient in expected_gradients.items():
        if name.endswith("k_proj.bias"):  # it shifts a softmax: its gradient is 0, and what is computed is rounding
            continue
        bound = (1e-2 if gradient.ndim == 2 else 2e-2) if precision == "bfloat16" else 1e-5
        assert distance(gradients[name], gradient) < bound, name


def as_bfloat16(array):
    return (utils.onednn().round_to_bfloat16(array).astype(np.uint32) << 16).view(np.float32)


def fast(layer, precision: str = "float32", padded: bool = False):
    """Our layer in the place of this one."""
    model = paddle.nn.Sequential(layer)
    run_pretrain.use_fast_layers(model, "cpu", precision, padded)
    assert type(model[0]) is not type(layer)
    return model[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["linear", "activated", "tied"])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 1, 1), (3, 5, 2), (64, 33, 7), (1, 64, 500), (35, 48, 80)])
def test_a_layer_and_its_gradients_are_those_of_its_rounded_operands(rows, width, outputs, kind, precision):
    paddle.seed(rows)
    layer = TransposedLinear(width, outputs) if kind == "tied" else paddle.nn.Linear(width, outputs)
    layer.bias.set_value(paddle.randn([outputs]))
    layer = fast(layer, precision)
    x, direction = paddle.randn([1, rows, width]), paddle.randn([1, rows, outputs])
    x.stop_gradient = False
    out = layer(run_pretrain.Gelu(precision)(x) if kind == "activated" else x)
    (out * direction).sum().backward()

    def exact(tensor):
        array = tensor.numpy()
        return paddle.to_tensor(as_bfloat16(array) if precision == "bfloat16" else array, dtype="float64")

    weight, upstream = exact(layer.weight), exact(direction).flatten(0, 1)
    weight = weight.t() if kind == "tied" else weight
    inputs = x.detach().astype("float64").flatten(0, 1)
    inputs.stop_gradient = False
    inner = F.gelu(inputs) if kind == "activated" else inputs
    (inner * (upstream @ weight.t())).sum().backward()
    operand = exact(inner.detach().astype("float32"))
    expected, by_weight = operand @ weight + layer.bias.astype("float64"), (operand.t() @ upstream).numpy()
    bound = 1e-3 if precision == "bfloat16" else 1e-5
    assert distance(out.flatten(0, 1).numpy(), expected.numpy()) < bound
    assert distance(layer.weight.grad.numpy(), by_weight.T if kind == "tied" else by_weight) < bound
    assert distance(layer.bias.grad.numpy(), upstream.sum(0).numpy()) < bound
    assert distance(x.grad.flatten(0, 1).numpy(), inputs.grad.numpy()) < bound


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_operands_that_do_not_fit_are_refused(precision):
    a, b, out = np.zeros((4, 6), np.float32), np.zeros((6, 8), np.float32), np.zeros((4, 8), np.float32)
    dnn = utils.onednn()
    for left, right, result in (
        (a, a, out),
        (a, b, np.zeros((4, 7), np.float32)),
        (a, b, out.astype(np.float64)),
        (a, b.astype(np.uint8), out),
        (a[:, ::2], b, out),
    ):
        if precision == "bfloat16":
            left, right = (x if x.dtype == np.uint8 else dnn.round_to_bfloat16(x.copy()) for x in (left, right))
        with pytest.raises((RuntimeError, TypeError)):
            dnn.matmul(left, right, result)
    left, right = (utils.as_operand(dnn, x, precision) for x in (a, b))
    assert dnn.matmul(left, right, out) is out


def test_a_wrong_python_type_is_an_error():
    dnn, array = utils.onednn(), np.ones((2, 2), np.float32)
    for wrong in (None, 1, [[1.0, 2.0]], array.tolist(), array.astype(np.float16), paddle.ones([2, 2])):
        with pytest.raises((TypeError, AttributeError)):
            dnn.softmax(wrong, array)
    with pytest.raises(ctypes.ArgumentError):
        dnn.new(utils.Description, "softmax_forward_primitive_desc_create", dnn.engine, 64, 1.5, None, None, 1, None)
    with pytest.raises(ctypes.ArgumentError):  # a stream where an engine belongs
        dnn.new(utils.Stream, "stream_create", dnn.stream, 1)


def test_the_primitives_kept_are_bounded_and_the_others_freed(monkeypatch):
    dnn, freed = utils.onednn(), []
    real = dnn.free
    monkeypatch.setattr(utils, "PREPARED", 5)
    monkeypatch.setattr(dnn, "free", lambda *prepared: freed.append(prepared) or real(*prepared))
    dnn.clear()
    freed.clear()
    results = {}
    for _ in range(2):  # in the second turn, each is prepared anew
        for size in range(1, 9):
            array = np.arange(size, dtype=np.float32).reshape(1, -1)
            dnn.softmax(array, array)
            assert len(dnn.prepared) <= 5
            assert np.array_equal(results.setdefault(size, array), array) and array.sum() == pytest.approx(1)
    assert len(freed) == 16 - 5
    array = np.zeros((1, 8), np.float32)
    before = list(dnn.prepared)
    dnn.softmax(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))  # used again, so not the next to go
    dnn.softmax(np.zeros((1, 9), np.float32), np.zeros((1, 9), np.float32))
    assert before[0] in dnn.prepared and before[1] not in dnn.prepared


def test_print_shows_the_layers_and_paddlenlps_own_without_them():
    model = model_of(64, 2)
    ours = str(with_cpu_layers(model, 64, 2, "bfloat16"))
    for name in ("Linear", "OutputLayer", "Attention", "Dropout", "Gelu"):
        assert re.search(rf"\): {name}\(", ours), ours
    assert not re.search("MultiHeadAttention", ours)
    assert re.search("MultiHeadAttention", str(model)) and not re.search("OutputLayer", str(model))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dropout_follows_the_seed_and_repeats_bit_for_bit(precision):
    ids, model = rows_of(4, 32, True), model_of(64, 2, dropout=0.1)
    ours = with_cpu_layers(model, 64, 2, precision, dropout=0.1)
    (first, gradients), (again, same), (other, _) = (loss_and_gradients(ours, ids, seed) for seed in (5, 5, 6))
    assert first == again and first != other
    assert all(np.array_equal(gradients[name], same[name]) for name in gradients)


def test_a_batch_may_be_taken_in_chunks_of_any_size(monkeypatch):
    """Each chunk of rows has its own padding and dropout, forward and backward."""
    ids, model = rows_of(5, 24, True), model_of(64, 2, dropout=0.2)
    ours = with_cpu_layers(model, 64, 2, "float32", dropout=0.2)
    results = []
    for chunk in (2**21, 2 * 2 * 24**2, 1):
        monkeypatch.setattr(utils, "ATTENTION_CHUNK", chunk)
        results.append(loss_and_gradients(ours, ids))
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert all(
            distance(gradients[name], g) < 1e-5 for name, g in results[0][1].items() if "k_proj.bias" not in name
        )


def test_attentions_dropout_keeps_its_share_and_the_mean():
    """Of equal weights and values 1, the context is what dropout keeps, scaled by what it leaves out."""
    paddle.seed(3)
    attention = fast(paddle.nn.MultiHeadAttention(4, 2, dropout=0.1))
    zeros, ones = paddle.zeros([4, 256, 4]), paddle.ones([4, 256, 4])
    context = attention.attend_on_cpu(zeros, zeros, ones, None, dropout=0.1).numpy()
    assert context.mean() == pytest.approx(1, abs=2e-3)
    deviation = (0.1 / 0.9 / 256) ** 0.5  # of the mean of 256 values that are 1 / 0.9 with probability 0.9, else 0
    assert context.std() == pytest.approx(deviation, rel=0.1)


def test_dropout_keeps_the_mean_and_its_gradient_the_mask():
    paddle.seed(3)
    x = paddle.ones([500, 1001])
    x.stop_gradient = False
    y = run_pretrain.Dropout(0.1)(x)
    y.sum().backward()
    assert (y == 0).astype("float32").mean().item() == pytest.approx(0.1, abs=2e-3)
    assert y.mean().item() == pytest.approx(1, abs=3e-3)
    assert np.array_equal(x.grad.numpy(), y.numpy())


def test_attention_with_dropout_has_the_gradient_of_what_it_computed():
    paddle.seed(2)
    attention = fast(paddle.nn.MultiHeadAttention(32, 2, dropout=0.3))
    x, direction = paddle.randn([2, 9, 32]), paddle.randn([2, 9, 32])
    x.stop_gradient = False

    def value(x):
        paddle.seed(4)
        return (attention(x) * direction).sum()

    value(x).backward()
    step = 1e-2 * paddle.randn(x.shape)
    with paddle.no_grad():
        numeric = (value(x + step) - value(x - step)).item() / 2
    assert numeric == pytest.approx((x.grad * step).sum().item(), rel=2e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nan_in_any_parameter_reaches_the_loss_or_the_gradients(precision):
    ids, names = rows_of(2, 8, False), [name for name, _ in model_of(64, 2).named_parameters()]
    assert len(names) > 30
    ours = with_cpu_layers(model_of(64, 2), 64, 2, precision)
    for name, parameter in ours.named_parameters():
        kept = parameter.clone()
        with paddle.no_grad():
            row = 0 if "position" not in name else 3
            row = int(ids[0, 0]) if "word_embeddings" in name else row
            parameter[row] = float("nan")
        loss, gradients = loss_and_gradients(ours, ids)
        norm = sum(np.square(gradient.astype(np.float64)).sum() for gradient in gradients.values())
        assert not (np.isfinite(loss) and np.isfinite(norm)), name
        parameter.set_value(kept)


def test_bfloat16_is_native_only_where_onednn_has_instructions_for_it():
    code = "import run_pretrain; run_pretrain.set_device(run_pretrain.parse_arguments(['--device', 'cpu']))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "products in float32 (no bfloat16 on this processor)\n" in run.stdout, run.stderr


@pytest.mark.parametrize("error", [OSError("no libdnnl"), AttributeError("no dnnl_matmul"), RuntimeError("status 3")])
@pytest.mark.parametrize("where", ["__init__", "softmax_backward"])
def test_where_onednn_cannot_be_used_the_plain_layers_train_and_a_line_says_so(
    monkeypatch, pretrain, tmp_path, capsys, error, where
):
    def fail(*arguments):
        raise error

    expected = metrics(pretrain("--max_steps", "2", "--dropout", "0", output=tmp_path / "fast"), "train")
    monkeypatch.setattr(utils.OneDNN, where, fail)
    utils.onednn.cache_clear()
    try:
        plain = pretrain("--max_steps", "2", "--dropout", "0", "--amp", "True", output=tmp_path / "plain")
    finally:
        monkeypatch.undo()
        utils.onednn.cache_clear()
    assert f"the CPU's faster layers are left out: {error}" in capsys.readouterr().out
    losses = [record["loss"] for record in metrics(plain, "train")]
    assert losses == pytest.approx([record["loss"] for record in expected], rel=1e-5)


def test_a_status_of_onednn_is_an_error():
    with pytest.raises(RuntimeError, match=r"matmul_primitive_desc_create gave status"):
        array = np.zeros((2, 2), np.float32)
        utils.onednn().matmul(array, array.astype(np.uint8), array)


@pytest.mark.parametrize("method", ["softmax", "gelu", "copy", "multiply"])
def test_arrays_of_different_shapes_are_an_error(method):
    array, other = np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32)
    arrays = (array, array, other) if method == "multiply" else (array, other)
    with pytest.raises(ValueError, match="different shapes"):
        getattr(utils.onednn(), method)(*arrays)
