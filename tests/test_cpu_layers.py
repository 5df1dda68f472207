"""The CPU's layers: the numbers of PaddleNLP's own, in float32 to rounding and in bfloat16 to bfloat16's."""

import copy
import ctypes
import itertools
import math
import os
import pathlib
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import scipy.special
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


def test_what_the_processor_computes_is_found_and_used():
    """By what Linux says of it; without this, tests of bfloat16 below would be skipped, or run in float32."""
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("oneDNN is told to use less than there is")
    [flags] = set(re.findall(r"^flags\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    flags = flags.split()
    assert utils.onednn().has_avx512 == ("avx512bw" in flags)
    assert utils.onednn().has_bfloat16 == ("avx512_bf16" in flags)
    precision, _ = run_pretrain.choose_precision(run_pretrain.parse_arguments([]), "cpu")
    assert precision == ("bfloat16" if "avx512_bf16" in flags else "float32")


@pytest.fixture(autouse=True)
def skip_bfloat16_where_no_processor_could(request):
    if "bfloat16" in request.node.name.partition("[")[2] and not utils.onednn().has_avx512:
        pytest.skip("oneDNN multiplies no bfloat16 on processors without AVX-512")


def model_of(width: int, heads: int, dropout: float = 0.0):
    sizes = dict(vocab_size=500, hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, pad_token_id=1)
    sizes.update(intermediate_size=4 * width, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    paddle.seed(1)
    model = run_pretrain.RobertaForMaskedLM(transformers.RobertaConfig(**sizes, type_vocab_size=1))
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
    chosen = ids.numpy() > 1  # <pad>'s outputs mean nothing
    chosen[0, -1] = False  # as in batch_of()
    chosen = paddle.to_tensor(np.flatnonzero(chosen))
    labels = paddle.gather(ids.flatten(), chosen)
    loss = F.cross_entropy(paddle.gather(logits.flatten(0, 1), chosen), labels, reduction="sum")
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    model.clear_gradients()
    return loss.item(), gradients


def masked_loss_and_gradients(model, ids, weight: float = 1.0) -> tuple:
    """The same by masked_loss, with filler; loss and gradients times `weight`."""
    assert isinstance(model.lm_head, run_pretrain.LMHead)
    batch = batch_of(ids)
    loss, num_correct = run_pretrain.masked_loss(model, batch)
    assert loss.dtype == paddle.float32 and num_correct is None
    (weight * loss).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    model.clear_gradients()
    return weight * loss.item(), gradients


def batch_of(ids) -> dict:
    """Each position that is not <pad> is predicted; some filler, as the collator adds."""
    ids = ids.numpy()
    labels = np.where(ids > 1, ids, -100)
    labels[0, -1] = -100
    chosen = np.flatnonzero(labels != -100)
    positions = np.append(chosen, np.full(7, ids.shape[1] - 1))
    arrays = {"input_ids": ids, "labels": labels, "masked_positions": positions}
    return {name: paddle.to_tensor(array) for name, array in arrays.items()}


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
    (loss, gradients), (masked_loss, masked) = loss_and_gradients(ours, ids), masked_loss_and_gradients(ours, ids)
    assert loss == pytest.approx(expected, rel=1e-3 if precision == "bfloat16" else 1e-6)
    for name, gradient in expected_gradients.items():
        if name.endswith("k_proj.bias"):  # it shifts a softmax: its gradient is 0, and what is computed is rounding
            continue
        bound = 2e-2 if precision == "bfloat16" else 1e-5
        assert distance(gradients[name], gradient) < bound, name
        assert distance(masked[name], gradient) < bound, name
    assert masked_loss == pytest.approx(expected, rel=1e-3 if precision == "bfloat16" else 1e-6)


def as_bfloat16(array):
    return (utils.onednn().round_to_bfloat16(array).astype(np.uint32) << 16).view(np.float32)


def fast(layer, precision: str = "float32", padded: bool = False):
    """Our layer in the place of this one."""
    model = paddle.nn.Sequential(copy.deepcopy(layer))
    run_pretrain.use_fast_layers(model, "cpu", precision, padded)
    assert type(model[0]) is not type(layer)
    return model[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["linear", "tied"])
@pytest.mark.parametrize(
    ("rows", "width", "outputs"), [(1, 1, 1), (3, 5, 2), (8, 137, 1), (64, 33, 7), (1, 64, 500), (35, 48, 80)]
)
def test_a_layer_and_its_gradients_are_those_of_its_rounded_operands(rows, width, outputs, kind, precision):
    paddle.seed(rows)
    layer = TransposedLinear(width, outputs) if kind == "tied" else paddle.nn.Linear(width, outputs)
    layer.bias.set_value(paddle.randn([outputs]))
    layer = fast(layer, precision)
    x, direction = paddle.randn([1, rows, width]), paddle.randn([1, rows, outputs])
    x.stop_gradient = False
    out = layer(x)
    (out * direction).sum().backward()

    def exact(tensor):
        array = tensor.numpy()[0] if tensor.ndim == 3 else tensor.numpy()
        return (as_bfloat16(array) if precision == "bfloat16" else array).astype(np.float64)

    weight, upstream, operand = exact(layer.weight), exact(direction), exact(x)
    weight = weight.T if kind == "tied" else weight
    expected, by_weight = operand @ weight + layer.bias.numpy(), operand.T @ upstream
    bound = 1e-3 if precision == "bfloat16" else 1e-5
    assert distance(out.numpy()[0], expected) < bound
    assert distance(layer.weight.grad.numpy(), by_weight.T if kind == "tied" else by_weight) < bound
    assert distance(layer.bias.grad.numpy(), upstream.sum(0)) < bound
    assert distance(x.grad.numpy()[0], upstream @ weight.T) < bound


def encoder_layer_in_float64(precision: str, heads: int, epsilon: float, mask, kept: list, dropouts: list):
    """BERT's layer with its operands rounded where EncoderLayerOperation rounds them; returns it and its gradient."""

    def exact(array):
        rounded = as_bfloat16(array.astype(np.float32)) if precision == "bfloat16" else array
        return rounded.astype(np.float64)

    factors = [k / (1 - dropout) for k, dropout in zip(kept, dropouts)]

    def by_head(array):
        return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)

    def joined(array):
        return array.swapaxes(1, 2).reshape(array.shape[0], array.shape[2], -1)

    def norm(x, scale, shift):
        deviation = np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return (x - x.mean(-1, keepdims=True)) / deviation * scale + shift

    def norm_backward(x, scale, grad):
        deviation = np.sqrt(x.var(-1, keepdims=True) + epsilon)
        normalized, g = (x - x.mean(-1, keepdims=True)) / deviation, grad * scale
        by_x = (g - g.mean(-1, keepdims=True) - normalized * (g * normalized).mean(-1, keepdims=True)) / deviation
        return by_x, (grad * normalized).sum((0, 1)), grad.sum((0, 1))

    def of_product(operand, grad):
        return np.einsum("bsi,bso->io", operand, grad), grad.sum((0, 1))

    def compute(x, grad_out, *parameters):
        p = utils.EncoderParameters(*parameters)
        w = {name: exact(getattr(p, name)) for name in p._fields if name.endswith("_weight")}
        x_ = exact(x)
        names = "query", "key", "value"
        query, key, value = (by_head(exact(x_ @ w[f"{name}_weight"] + getattr(p, f"{name}_bias"))) for name in names)
        size = query.shape[-1] ** -0.5
        scores = np.exp(query @ key.swapaxes(2, 3) * size + mask)
        weights = exact(scores / scores.sum(-1, keepdims=True))
        context = exact(joined(weights * factors[0] @ value))
        attended = (context @ w["output_weight"] + p.output_bias) * factors[1] + x
        hidden = norm(attended, p.norm1_scale, p.norm1_shift)
        hidden_ = exact(hidden)
        inner = exact(hidden_ @ w["inner_weight"] + p.inner_bias)
        cdf = scipy.special.ndtr(inner)
        activated = exact(inner * cdf)
        result = (activated @ w["outer_weight"] + p.outer_bias) * factors[2] + hidden
        out = norm(result, p.norm2_scale, p.norm2_shift)

        grad_hidden, *by_norm2 = norm_backward(result, p.norm2_scale, grad_out)
        grad_result = exact(grad_hidden * factors[2])
        by_outer = of_product(activated, grad_result)
        density = np.exp(-inner * inner / 2) / np.sqrt(2 * np.pi)
        grad_inner = exact(exact(grad_result @ w["outer_weight"].T) * (cdf + inner * density))
        by_inner = of_product(hidden_, grad_inner)
        grad_hidden = grad_hidden + grad_inner @ w["inner_weight"].T
        grad_x, *by_norm1 = norm_backward(attended, p.norm1_scale, grad_hidden)
        grad_attended = exact(grad_x * factors[1])
        by_output = of_product(context, grad_attended)
        grad_context = by_head(exact(grad_attended @ w["output_weight"].T))
        grad_value = exact((weights * factors[0]).swapaxes(2, 3) @ grad_context)
        grad_weights = exact(grad_context @ value.swapaxes(2, 3) * factors[0])
        inside = (grad_weights * weights).sum(-1, keepdims=True)
        grad_scores = exact(weights * (grad_weights - inside))
        grad_query, grad_key = exact(grad_scores @ key * size), exact(grad_scores.swapaxes(2, 3) @ query * size)
        gradients = [joined(g) for g in (grad_query, grad_key, grad_value)]
        by_projections = [array for g in gradients for array in of_product(x_, g)]
        grad_x = grad_x + sum(g @ w[f"{name}_weight"].T for name, g in zip(names, gradients))
        return out, [grad_x, *by_projections, *by_output, *by_norm1, *by_inner, *by_outer, *by_norm2]

    return compute


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize(("batch", "seq", "width", "heads", "padded"), SHAPES)
def test_an_encoder_layer_and_its_gradients_are_those_of_its_rounded_operands(
    batch, seq, width, heads, padded, dropout, precision
):
    random, seeds, epsilon = np.random.default_rng(seq), [1, 2, 3], 1e-5
    shapes = [(width, width), (width,)] * 4 + [(width,), (width,)]
    shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,), (width,), (width,)]
    parameters = [random.normal(len(shape) == 1, shape[0] ** -0.5, shape).astype(np.float32) for shape in shapes]
    x, grad_out = random.normal(size=(2, batch, seq, width)).astype(np.float32)
    mask = np.zeros((batch, 1, 1, seq), np.float32)
    if padded:
        mask[:, :, :, -2:] = -1e4
    arguments = utils.onednn(), precision, heads, epsilon, mask if padded else None, dropout, dropout, seeds
    operation, out = utils.EncoderLayerOperation(*arguments), np.empty_like(x)
    gradients = [np.empty_like(array) for array in (x, *parameters)]
    operation.forward(out, x, *parameters)
    operation.backward(grad_out, *gradients)

    flat = (batch * seq, width)
    kept = [utils.draw_kept(s, dropout, seed) for s, seed in zip(((batch, heads, seq, seq), flat, flat), seeds)]
    kept = [kept[0], *(k.reshape(x.shape) for k in kept[1:])]
    compute = encoder_layer_in_float64(precision, heads, epsilon, mask, kept, [dropout] * 3)
    expected_out, expected = compute(x, grad_out, *parameters)
    # A value between two of bfloat16's may be rounded to the other one, and so what follows from it.
    bound = 3e-3 if precision == "bfloat16" else 1e-5
    assert distance(out, expected_out) < bound
    for name, gradient, right in zip(("x", *utils.EncoderParameters._fields), gradients, expected):
        if name != "key_bias":  # it shifts a softmax: its gradient is 0, and what is computed is rounding
            assert distance(gradient, right) < bound, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "width", "vocab"), [(1, 8, 5), (3, 7, 5), (64, 16, 100), (150, 48, 333)])
def test_the_masked_loss_and_its_gradients_are_those_of_its_rounded_operands(rows, width, vocab, precision):
    random = np.random.default_rng(rows)
    x, weight = random.normal(size=(rows, width)).astype(np.float32), random.normal(size=(vocab, width))
    weight, bias = weight.astype(np.float32), random.normal(size=vocab).astype(np.float32)
    labels = random.integers(0, vocab, rows)
    labels[5::7] = -100

    def exact(array):
        return (as_bfloat16(array) if precision == "bfloat16" else array).astype(np.float64)

    operation, loss = utils.MaskedLossOperation(utils.onednn(), precision, labels, True), np.empty((), np.float32)
    gradients, scale = [np.empty_like(array) for array in (x, weight, bias)], np.float32(0.3)
    operation.forward(loss, x, weight, bias)
    operation.backward(scale, *gradients)
    logits, counted = exact(x) @ exact(weight).T + bias, np.flatnonzero(labels != -100)
    log_probabilities = scipy.special.log_softmax(logits, axis=1)
    assert loss == pytest.approx(-log_probabilities[counted, labels[counted]].sum(), rel=1e-5)
    grad_logits = np.exp(log_probabilities)
    grad_logits[counted, labels[counted]] -= 1
    grad_logits[labels == -100] = 0
    grad_logits, bound = exact(grad_logits.astype(np.float32)), 1e-3 if precision == "bfloat16" else 1e-5
    expected = 0.3 * grad_logits @ exact(weight), grad_logits.T @ exact(scale * x), 0.3 * grad_logits.sum(0)
    for gradient, right in zip(gradients, expected):
        assert distance(gradient, right) < bound
    evaluated = utils.MaskedLossOperation(utils.onednn(), precision, labels, False)
    evaluated.forward(again := np.empty((), np.float32), x, weight, bias)
    assert again == loss and evaluated.num_correct == (logits.argmax(1) == labels).sum()


def test_a_loss_whose_probability_is_no_float32_is_exact_and_nan_shows():
    x, weight, bias = np.ones((2, 2), np.float32), np.zeros((3, 2), np.float32), np.array([0, 500, 0], np.float32)
    for bad in (0, np.nan, np.inf):
        weight[2] = bad
        operation, loss = utils.MaskedLossOperation(utils.onednn(), "float32", np.array([0, 0]), True), np.empty(())
        operation.forward(loss, x, weight, bias)
        assert loss == 1000 if bad == 0 else not np.isfinite(loss)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_tied_weights_gradient_is_the_sum_of_all_its_uses(precision):
    """Of micro-batches one after the other, of losses that are summed first, and beside logits."""
    model = model_of(64, 2)
    ours = with_cpu_layers(model, 64, 2, precision)
    assert isinstance(ours.roberta.embeddings.word_embeddings, run_pretrain.Embedding)
    name, batches = "roberta.embeddings.word_embeddings.weight", (rows_of(2, 9, True), rows_of(3, 20, False))
    weight = dict(ours.named_parameters())[name]
    alone = [masked_loss_and_gradients(ours, ids)[1][name] for ids in batches]
    by_logits = loss_and_gradients(ours, batches[0])[1][name]
    own = loss_and_gradients(model, batches[0])[1][name]
    assert distance(alone[0], own) < (1e-2 if precision == "bfloat16" else 1e-5)
    assert distance(by_logits, own) < (1e-2 if precision == "bfloat16" else 1e-5)

    def loss_of(ids):
        return run_pretrain.masked_loss(ours, batch_of(ids))[0]

    def taken():
        gradient = weight.grad.numpy().copy()
        ours.clear_gradients()
        return gradient

    for ids in batches:
        loss_of(ids).backward()
    assert distance(taken(), alone[0] + alone[1]) < 1e-6
    (loss_of(batches[0]) + loss_of(batches[1])).backward()
    assert distance(taken(), alone[0] + alone[1]) < 1e-6
    loss_of(batches[0])  # a pass without a backward one leaves nothing behind
    loss_of(batches[1]).backward()
    assert distance(taken(), alone[1]) < 1e-6
    # The head's backward pass first, by hidden states that are detached; then, after another forward pass, the rest.
    batch = batch_of(batches[0])
    labels = paddle.gather(batch["labels"].flatten(), batch["masked_positions"])

    def hidden_states():
        return paddle.gather(ours.roberta(batch["input_ids"])[0].flatten(0, 1), batch["masked_positions"])

    detached = hidden_states().detach()
    detached.stop_gradient = False
    ours.lm_head.loss(detached, labels)[0].backward()
    hidden_states().backward(detached.grad)
    assert distance(taken(), alone[0]) < 1e-6


def test_the_tied_weight_has_its_gradient_where_the_embeddings_are_computed_without_one():
    """As where only the upper layers are trained: no backward pass of the embedding's would take it."""
    model, ids = model_of(64, 2), rows_of(2, 9, False)
    ours, batch = with_cpu_layers(model, 64, 2, "float32", padded=False), batch_of(ids)
    labels = paddle.gather(batch["labels"].flatten(), batch["masked_positions"])

    def hidden_states(model):
        with paddle.no_grad():
            embedded = model.roberta.embeddings(batch["input_ids"])
        return paddle.gather(model.roberta.encoder(embedded).flatten(0, 1), batch["masked_positions"])

    gradients = []
    for one in (model, ours):
        hidden = hidden_states(one)
        loss = F.cross_entropy(one.lm_head(hidden), labels, reduction="sum") if one is model else None
        (loss if one is model else one.lm_head.loss(hidden, labels)[0]).backward()
        gradients.append(one.lm_head.decoder.weight.grad.numpy())
    assert distance(gradients[1], gradients[0]) < 1e-5


def test_threads_of_one_process_compute_each_its_own(onednn):
    """As in a server: they share what oneDNN has prepared for a shape."""
    dnn, wrong = utils.onednn(), []

    def compute(number: int):
        left, right = np.full((48, 64), number, np.float32), np.ones((64, 80), np.float32)
        for _ in range(400):
            out = np.zeros((48, 80), np.float32)
            dnn.matmul(left, right, out)
            if not (out == 64 * number).all():
                wrong.append(number)

    threads = [threading.Thread(target=compute, args=[number]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_attention_mask_is_looked_at_or_refused(monkeypatch):
    """One of two documents in a row, and one of a row's last places; with masked positions and without."""
    monkeypatch.setattr(utils, "ATTENTION_CHUNK", 1)  # a head of a row at a time
    real = utils.AttentionOperation.forward

    def forward(self, context, projected):
        assert self.mask is None or len(self.mask) == len(context)  # each chunk of rows takes its part
        real(self, context, projected)

    monkeypatch.setattr(utils.AttentionOperation, "forward", forward)
    model, ids = model_of(64, 2), rows_of(2, 12, False)
    model.eval()
    apart = np.zeros((2, 1, 12, 12), np.float32)
    apart[:, :, :5, 5:] = apart[:, :, 5:, :5] = -1e4
    ends = (np.arange(12) < 8).astype(np.float32)[None].repeat(2, 0)
    positions = paddle.to_tensor(np.array([1, 4, 6, 14, 18]))
    ours = with_cpu_layers(model, 64, 2, "float32", padded=True)
    ours.eval()
    for mask in map(paddle.to_tensor, (apart, apart[:1], ends)):
        expected = model(ids, attention_mask=mask).numpy()
        assert distance(model(ids).numpy(), expected) > 1e-3
        assert distance(ours(ids, attention_mask=mask).numpy(), expected) < 1e-5
        at_positions = expected.reshape(24, -1)[positions.numpy()]
        assert distance(ours(ids, masked_positions=positions, attention_mask=mask).numpy(), at_positions) < 1e-5
    unpadded = with_cpu_layers(model, 64, 2, "float32", padded=False)
    for more in ({}, {"masked_positions": positions}):
        with pytest.raises(ValueError, match=r"attention_mask: call use_fast_layers\(\) with is_padded=True"):
            unpadded(ids, attention_mask=mask, **more)
    within = model_of(64, 2)
    run_pretrain.use_fast_layers(paddle.nn.Sequential(within), "cpu", "float32", is_padded=False)
    with pytest.raises(ValueError, match="attention_mask: call"):
        within(ids, attention_mask=mask)


def test_large_memory_is_lent_to_one_at_a_time_and_stays(monkeypatch):
    monkeypatch.setattr(utils, "LARGE", 1000)
    buffers = utils.Buffers()
    first, other = buffers.take((20, 30), np.float32), buffers.take((20, 30), np.float32)
    address, others = first.ctypes.data, other.ctypes.data
    assert address != others and buffers.take((3,), np.float32).ctypes.data not in (address, others)
    part = first[3:, ::2]
    del first
    third = buffers.take((20, 30), np.float32)
    assert third.ctypes.data not in (address, others)  # a view of the first is still in use
    del part
    assert buffers.take((30, 20), np.uint16).ctypes.data == address  # of another type, and smaller
    assert len(buffers.unused) == 1
    larger = buffers.take((2000,), np.float32)
    assert larger.shape == (2000,) and not buffers.unused  # what is too small is given up


def test_the_smallest_memory_that_fits_is_lent(monkeypatch):
    monkeypatch.setattr(utils, "LARGE", 1000)
    buffers = utils.Buffers()
    arrays = [buffers.take((size,), np.uint8) for size in (3000, 1000, 2000)]
    addresses = {array.nbytes: array.ctypes.data for array in arrays}
    while arrays:
        del arrays[0]  # the largest first
    kept = [buffers.take((size,), np.uint8) for size in (1500, 900, 1000, 2500)]
    assert [array.ctypes.data for array in kept[::2]] == [addresses[2000], addresses[1000]]
    assert kept[3].ctypes.data == addresses[3000]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_output_layer_works_in_the_memory_of_its_weights_gradient(monkeypatch, precision):
    """50 MB less of roberta-en-mini: beside it, an update keeps the logits' gradients alone."""
    taken = []
    take = utils.Buffers.take
    monkeypatch.setattr(utils.Buffers, "take", lambda *given: taken.append(given[1]) or take(*given))
    rows, width, vocab = 300, 256, 500
    draw = np.random.default_rng(0).standard_normal
    x, weight, bias = (draw(shape, np.float32) for shape in ((rows, width), (vocab, width), (vocab,)))
    gradients = np.empty_like(x), np.full_like(weight, np.nan), np.empty_like(bias)
    for memory in (None, gradients[1]):
        operation = utils.MaskedLossOperation(utils.onednn(), precision, np.zeros(rows, np.int64), True)
        operation.memory = memory
        operation.forward(np.empty((), np.float32), x, weight, bias)
        operation.backward(np.float32(1), *gradients)
        if memory is None:
            expected = [gradient.copy() for gradient in gradients]
    for gradient, alone in zip(gradients, expected):
        np.testing.assert_array_equal(gradient, alone)
    scratch = [shape for shape in taken if len(shape) == 1]  # for the first alone
    assert scratch == [(128 * vocab + (weight.size // 2 if precision == "bfloat16" else 0),)]


def test_the_model_hands_that_memory_to_its_output_layer(monkeypatch):
    handed = []

    class Operation(utils.MaskedLossOperation):
        def backward(self, grad_out, grad_x, grad_weight, grad_bias):
            handed.append(np.shares_memory(self.memory, grad_weight))
            super().backward(grad_out, grad_x, grad_weight, grad_bias)

    monkeypatch.setattr(utils, "MaskedLossOperation", Operation)
    masked_loss_and_gradients(with_cpu_layers(model_of(64, 2), 64, 2, "float32"), rows_of(3, 20, False))
    assert handed == [True]


def test_large_gradients_are_in_memory_that_stays_and_right(monkeypatch):
    """As the embedding's of a real vocabulary: of two micro-batches, after an update, and while one is kept."""
    ours, ids = with_cpu_layers(model_of(64, 2), 64, 2, "float32"), rows_of(3, 20, False)
    _, expected = masked_loss_and_gradients(ours, ids)
    expected = {name: gradient.copy() for name, gradient in expected.items()}
    monkeypatch.setattr(utils, "LARGE", 4 * 64 * 64)
    weight = ours.roberta.embeddings.word_embeddings.weight
    addresses, lent, take = set(), set(), utils.BUFFERS.take

    def noted(*given):
        array = take(*given)
        lent.add(array.ctypes.data)
        return array

    monkeypatch.setattr(utils.BUFFERS, "take", noted)
    for _ in range(3):
        for _ in range(2):
            run_pretrain.masked_loss(ours, batch_of(ids))[0].backward()
        addresses.add(weight.grad.data_ptr())
        for name, parameter in ours.named_parameters():
            if "k_proj.bias" not in name:
                assert distance(parameter.grad.numpy() / 2, expected[name]) < 1e-5, name
        for parameter in ours.parameters():
            parameter.clear_gradient(set_to_zero=False)
    assert len(addresses) < 3 and addresses <= lent


def test_dropout_draws_as_often_as_asked_and_each_value_for_itself():
    for dropout in (0.01, 0.1, 0.5):
        kept = utils.draw_kept((2, 1_000_001), dropout, seed=7).ravel()
        assert set(np.unique(kept)) == {0, 1} and len(kept) == 2_000_002
        assert 1 - kept.mean() == pytest.approx(dropout, rel=0.02)
        for distance_ in (1, 2, 1_000_001, 1_000_002):  # neighbours, and those that share a byte
            assert abs(np.corrcoef(kept[:-distance_], kept[distance_:])[0, 1]) < 0.006
    assert utils.draw_kept((3,), 0.0, 1).all() and not np.array_equal(
        utils.draw_kept((999,), 0.5, 1), utils.draw_kept((999,), 0.5, 2)
    )


def test_rows_that_repeat_are_added_to_a_matrix():
    random = np.random.default_rng(0)
    matrix, ids, rows = random.normal(size=(9, 4)), random.integers(0, 9, 30), random.normal(size=(30, 4))
    expected = matrix.copy()
    np.add.at(expected, ids, rows)
    utils.add_rows(matrix, ids, rows)
    np.testing.assert_allclose(matrix, expected)
    utils.add_rows(matrix, ids[:0], rows[:0])
    np.testing.assert_allclose(matrix, expected)


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
    while dnn.prepared:
        dnn.free(*dnn.prepared.popitem()[1])
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
    for name in ("Linear", "OutputLayer", "Attention", "Dropout", "LayerNorm", "EncoderLayer", "LMHead", "Embedding"):
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
    """Each chunk of rows, or of a row's heads, has its own padding and dropout, forward and backward."""
    ids, model = rows_of(5, 24, True), model_of(64, 4, dropout=0.2)
    ours = with_cpu_layers(model, 64, 4, "float32", dropout=0.2)
    results = []
    for chunk in (2**21, 2 * 4 * 24**2, 3 * 24**2, 1):
        monkeypatch.setattr(utils, "ATTENTION_CHUNK", chunk)
        results.append(loss_and_gradients(ours, ids))
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert all(
            distance(gradients[name], g) < 1e-5 for name, g in results[0][1].items() if "k_proj.bias" not in name
        )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("batch", "seq", "heads", "rows_in_a_chunk"),
    [(24, 8, 2, 10**4), (15, 5, 1, 10**4), (96, 32, 3, 10**4), (64, 8, 2, 24)],
)
def test_attention_is_right_where_a_batch_has_three_times_as_many_rows_as_places(
    batch, seq, heads, rows_in_a_chunk, precision, monkeypatch
):
    """There oneDNN 3 takes the strides of query, key and value for others; 24 rows of 128 in pieces of 32 are so."""
    monkeypatch.setattr(utils, "ATTENTION_CHUNK", rows_in_a_chunk * heads * seq**2)
    ids, model = rows_of(batch, seq, False), model_of(48, heads)
    ids[::2, seq // 2 :] = 1  # <pad>
    expected, expected_gradients = loss_and_gradients(model, ids)
    loss, gradients = loss_and_gradients(with_cpu_layers(model, 48, heads, precision), ids)
    assert loss == pytest.approx(expected, rel=1e-3 if precision == "bfloat16" else 1e-6)
    for name, gradient in expected_gradients.items():
        if "k_proj.bias" not in name:
            assert distance(gradients[name], gradient) < (2e-2 if precision == "bfloat16" else 1e-5), name


def test_chunks_of_attention_hold_each_head_of_each_row_once_and_are_no_larger_than_asked_for(monkeypatch):
    """And none has three times as many rows as places."""
    for batch, heads, seq, most in itertools.product(
        (1, 2, 3, 23, 24, 25, 71, 72, 96, 97), (1, 2, 5, 12), (1, 2, 8, 32), (1, 3, 24, 96, 10**6)
    ):
        monkeypatch.setattr(utils, "ATTENTION_CHUNK", most * seq**2)
        times = np.zeros((batch, heads), int)
        for chunk in utils.attention_chunks(batch, heads, seq):
            rows_at_a_time = len(times[chunk]) if times[chunk].ndim == 2 else 1
            assert 0 < times[chunk].size <= most and rows_at_a_time != 3 * seq
            times[chunk] += 1
        assert (times == 1).all()


def test_attentions_dropout_keeps_its_share_and_the_mean():
    """Of equal weights and values 1, the context is what dropout keeps, scaled by what it leaves out."""
    attention = utils.AttentionOperation(utils.onednn(), np.float32, 2, None, dropout=0.1, seed=3)
    projected, context = np.zeros((4, 256, 12), np.float32), np.empty((4, 256, 4), np.float32)
    projected[:, :, 8:] = 1
    attention.forward(context, projected)
    assert context.mean() == pytest.approx(1, abs=2e-3)
    deviation = (0.1 / 0.9 / 256) ** 0.5  # of the mean of 256 values that are 1 / 0.9 with probability 0.9, else 0
    assert context.std() == pytest.approx(deviation, rel=0.1)


def test_dropout_keeps_the_mean_and_its_gradient_the_mask():
    paddle.seed(3)
    x = paddle.ones([500, 1001])
    x.stop_gradient = False
    y = fast(paddle.nn.Dropout(0.1))(x)
    y.sum().backward()
    assert (y == 0).astype("float32").mean().item() == pytest.approx(0.1, abs=2e-3)
    assert y.mean().item() == pytest.approx(1, abs=3e-3)
    assert np.array_equal(x.grad.numpy(), y.numpy())


def test_an_encoder_layer_with_dropout_has_the_gradient_of_what_it_computed():
    paddle.seed(2)
    layer = fast(paddle.nn.TransformerEncoderLayer(32, 2, 64, 0.3, "gelu", act_dropout=0.0))
    x, direction = paddle.randn([2, 9, 32]), paddle.randn([2, 9, 32])
    x.stop_gradient = False

    def value(x):
        paddle.seed(4)
        return (layer(x) * direction).sum()

    value(x).backward()
    step = 1e-2 * paddle.randn(x.shape)
    with paddle.no_grad():
        numeric = (value(x + step) - value(x - step)).item() / 2
        assert value(x).item() == value(x).item()
    assert numeric == pytest.approx((x.grad * step).sum().item(), rel=2e-2)
    layer.eval()
    assert value(x).item() == value(x).item() == (layer(x) * direction).sum().item()


@pytest.mark.parametrize("change", [{"normalize_before": True}, {"activation": "relu"}, {"act_dropout": 0.1}])
def test_an_encoder_layer_of_another_kind_stays_paddles(change):
    settings = {"dropout": 0.1, "activation": "gelu", "act_dropout": 0.0, **change}
    model = paddle.nn.Sequential(paddle.nn.TransformerEncoderLayer(32, 2, 64, **settings))
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=False)
    assert type(model[0]) is paddle.nn.TransformerEncoderLayer and isinstance(model[0].linear1, run_pretrain.Linear)
    assert model(paddle.randn([2, 5, 32])).shape == [2, 5, 32]


@pytest.mark.parametrize("part, name, value", [("dropout2", "p", 0.5), ("norm2", "_epsilon", 1e-3)])
def test_an_encoder_layer_whose_halves_differ_stays_paddles(part, name, value):
    model = paddle.nn.Sequential(paddle.nn.TransformerEncoderLayer(32, 2, 64, 0.1, activation="gelu", act_dropout=0.0))
    setattr(getattr(model[0], part), name, value)
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=False)
    assert type(model[0]) is paddle.nn.TransformerEncoderLayer


class ScaledEmbedding(paddle.nn.Embedding):
    def forward(self, ids):
        return 2 * super().forward(ids)


def test_an_embedding_of_somebodys_own_stays_as_it_is():
    model, ids = model_of(64, 2), rows_of(2, 9, False)
    model.roberta.embeddings.word_embeddings.__class__ = ScaledEmbedding
    own = loss_and_gradients(model, ids)[1]["roberta.embeddings.word_embeddings.weight"]
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=False)
    assert type(model.roberta.embeddings.word_embeddings) is ScaledEmbedding
    ours = masked_loss_and_gradients(model, ids)[1]["roberta.embeddings.word_embeddings.weight"]
    assert distance(ours, own) < 1e-5


class OneOfEach(paddle.nn.Layer):
    """Layers that ours do not cover, each beside one that they do."""

    def __init__(self):
        super().__init__()
        self.others = paddle.nn.LayerList(
            [
                paddle.nn.Linear(8, 8, bias_attr=False),
                paddle.nn.LayerNorm([6, 8]),
                paddle.nn.LayerNorm(8, weight_attr=False, bias_attr=False),
                paddle.nn.Dropout(0.5, axis=0),
                paddle.nn.Dropout(0.5, mode="downscale_in_infer"),
            ]
        )
        self.covered = paddle.nn.LayerList([paddle.nn.Linear(8, 8), paddle.nn.LayerNorm(8), paddle.nn.Dropout(0.5)])


def test_layers_that_ours_do_not_cover_stay_as_they_are():
    model = OneOfEach()
    types = [type(layer) for layer in model.others]
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=False)
    assert [type(layer) for layer in model.others] == types
    assert [type(layer).__module__ for layer in model.covered] == ["run_pretrain"] * 3


def test_a_model_keeps_its_mode_and_its_hooks():
    model, seen = model_of(64, 2, dropout=0.3), []
    model.eval()
    layer = model.roberta.encoder.layers[0].linear1
    handle = model.roberta.encoder.layers[1].register_forward_post_hook(lambda *_: seen.append(1))
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=True)
    assert not any(layer.training for layer in model.sublayers()) and isinstance(layer, run_pretrain.Linear)
    assert all(isinstance(layer, run_pretrain.EncoderLayer) for layer in model.roberta.encoder.layers)
    ids = rows_of(2, 8, False)
    assert np.array_equal(model(ids).numpy(), model(ids).numpy()) and len(seen) == 2
    handle.remove()


class Adapted(paddle.nn.Linear):
    """As an adapter that somebody puts into a layer."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("change", ["adapter", "hook"])
def test_an_encoder_layer_in_which_something_is_to_be_called_calls_it(change):
    model, ids, seen = model_of(64, 2), rows_of(2, 8, False), []
    model.eval()
    inner = model.roberta.encoder.layers[0].linear1
    if change == "adapter":
        inner.__class__ = Adapted
    else:
        inner.register_forward_post_hook(lambda layer, inputs, output: seen.append(1))
    expected = model(ids).numpy()
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=True)
    first, second = model.roberta.encoder.layers
    assert not isinstance(first, run_pretrain.EncoderLayer) and isinstance(second, run_pretrain.EncoderLayer)
    assert distance(model(ids).numpy(), expected) < 1e-5 and len(seen) == (2 if change == "hook" else 0)


@pytest.mark.parametrize(
    "name", ["roberta.encoder.layers.0.self_attn", "roberta.encoder.layers.0.dropout1", "lm_head", "lm_head.decoder"]
)
def test_a_hook_is_called_wherever_it_hangs(name):
    model, ids, seen = model_of(64, 2, dropout=0.1), rows_of(2, 8, False), []
    dict(model.named_sublayers())[name].register_forward_post_hook(lambda *_: seen.append(1))
    run_pretrain.use_fast_layers(model, "cpu", "float32", is_padded=True)
    positions, labels = paddle.to_tensor([1, 5]), paddle.to_tensor([7, 8])
    loss, _ = model(ids, masked_positions=positions, labels=labels)
    assert seen and math.isfinite(loss.item())


@pytest.mark.parametrize("is_padded", [False, True])
def test_attention_to_another_text_or_with_another_mask_is_paddles(is_padded):
    """As of a decoder that somebody puts on the encoder."""
    paddle.seed(5)
    decoder = paddle.nn.TransformerDecoderLayer(32, 2, 64, 0.0, "gelu")
    inputs = paddle.randn([2, 7, 32]), paddle.randn([2, 9, 32])
    causal = paddle.tensor.triu(paddle.full([7, 7], -1e9), 1)
    masks = None, causal, causal.unsqueeze([0, 1]), paddle.tril(paddle.ones([7, 7])).astype("bool")
    expected = [decoder(*inputs, tgt_mask=mask).numpy() for mask in masks]
    run_pretrain.use_fast_layers(decoder, "cpu", "float32", is_padded=is_padded)
    assert isinstance(decoder.cross_attn, run_pretrain.Attention)
    for mask, output in zip(masks, expected):
        np.testing.assert_allclose(decoder(*inputs, tgt_mask=mask).numpy(), output, atol=1e-5)
    assert np.abs(expected[1] - expected[0]).max() > 0.01


def test_attention_weights_are_given_where_they_are_asked_for():
    model, ids = model_of(64, 2), rows_of(2, 8, False)
    model.eval()
    expected = model.roberta(ids, output_attentions=True)[-1]
    ours = with_cpu_layers(model, 64, 2, "float32")
    ours.eval()
    found = ours.roberta(ids, output_attentions=True)[-1]
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected):
        assert one.shape == [2, 2, 8, 8]
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)
    assert distance(ours(ids).numpy(), model(ids).numpy()) < 1e-5  # and afterwards without them


def test_what_a_fast_model_cannot_do_is_refused():
    ours, ids = with_cpu_layers(model_of(64, 2), 64, 2, "float32"), rows_of(2, 8, False)
    with pytest.raises(ValueError, match=r"use_fast_layers\(\) was called for this model before"):
        run_pretrain.use_fast_layers(ours, "cpu", "float32", is_padded=False)
    with pytest.raises(ValueError, match="precision is 'bf16', and none of float32, bfloat16, float16"):
        run_pretrain.use_fast_layers(model_of(64, 2), "cpu", "bf16", is_padded=False)
    with pytest.raises(ValueError, match=r"resize before use_fast_layers\(\)"):
        ours.resize_token_embeddings(600)
    with pytest.raises(TypeError, match="positional"):  # PaddleNLP's second argument is another
        ours(ids, ids)
    labels = paddle.to_tensor([-1, 5])
    with pytest.raises(ValueError, match="a label is negative, and not -100"):
        ours(ids, masked_positions=paddle.to_tensor([1, 2]), labels=labels)
    plain = model_of(64, 2)
    plain.resize_token_embeddings(600)
    assert plain(ids).shape == [2, 8, 600]


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
        loss, gradients = masked_loss_and_gradients(ours, ids)
        norm = sum(np.square(gradient.astype(np.float64)).sum() for gradient in gradients.values())
        assert not (np.isfinite(loss) and np.isfinite(norm)), name
        parameter.set_value(kept)


def test_bfloat16_is_native_only_where_onednn_has_instructions_for_it():
    code = "import run_pretrain; run_pretrain.start_machine(run_pretrain.parse_arguments(['--device', 'cpu']))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "products in float32 (no bfloat16 on this processor)\n" in run.stdout, run.stderr


def test_no_product_runs_in_a_reference_loop_on_a_processor_with_avx2_alone():
    """As on most laptops. Such a loop takes 2,000 times as long: on oneDNN 3.2, a masked product added in place."""
    code = """
import ctypes, conftest, test_cpu_layers as tests, utils
create, kinds = utils.OneDNN.new, set()
def noted(self, kind, function, *arguments):
    made = create(self, kind, function, *arguments)
    if kind is utils.Description:
        name = ctypes.c_char_p()
        assert self.library.dnnl_primitive_desc_query(made, 8, 0, ctypes.byref(name)) == 0  # dnnl_query_impl_info_str
        kinds.add((function.removesuffix("_primitive_desc_create"), name.value.decode()))
    return made
utils.OneDNN.new = noted
model = tests.with_cpu_layers(tests.model_of(64, 2), 64, 2, "float32", dropout=0.1)
kinds.clear()  # of trying each operation
for padded in (False, True):
    tests.masked_loss_and_gradients(model, tests.rows_of(3, 20, padded))
for kind in sorted(kinds):
    print(*kind)
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    folder = ROOT / "tests"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    kinds = [line.split() for line in run.stdout.splitlines() if re.match("[a-z_]+ [a-z0-9_:]+$", line)]
    assert {"matmul", "inner_product_backward_weights", "binary", "layer_normalization_backward"} <= {
        kind for kind, _ in kinds
    }, run.stderr
    slow = {kind for kind, implementation in kinds if implementation.startswith("ref")}
    assert slow <= {"softmax_backward"}, kinds  # that loop is short: 4 percent of an update of roberta-en-mini


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


def test_other_tensors_than_float32s_are_refused():
    """And not read beyond their end."""
    with pytest.raises(TypeError, match=r"compute with float32 on the CPU, and this is paddle.bfloat16 on .*auto_cast"):
        run_pretrain.array_of(paddle.ones([3]).astype("bfloat16"))


def test_a_want_of_memory_within_onednn_is_one():
    with pytest.raises(MemoryError, match="matmul gave status 1"):
        utils.OneDNN.check_status(1, SimpleNamespace(__name__="matmul"), ())


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


@pytest.mark.parametrize(("on_cpu", "precision"), [(True, "float32"), (True, "bfloat16"), (False, "float32")])
@pytest.mark.parametrize("shape", [(64, 64), (32, 128)])
def test_muons_steps_keep_the_directions_and_have_singular_values_of_about_one(shape, on_cpu, precision):
    """On a CPU by oneDNN, elsewhere by Paddle."""
    machine = run_pretrain.Machine("cpu", precision)
    optimizer = run_pretrain.Muon(set(), machine, parameters=[paddle.create_parameter([1], "float32")])
    optimizer.on_cpu = on_cpu
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(length, shape[0])))[0] for length in shape)
    values = np.geomspace(1, 0.02, shape[0])
    assert values[-1] > 0.003 * np.linalg.norm(values)
    matrix = (left * values) @ right.T * 1e-6  # as small as gradients are
    matrices = paddle.to_tensor(np.stack([matrix, -1000 * matrix, 0 * matrix]).astype(np.float32))
    step, opposite, nothing = run_pretrain.orthogonalize(matrices, optimizer.product).numpy()
    turned = left.T @ step @ right
    values, bound = np.diag(turned), 0.1 if precision == "bfloat16" else 1e-4
    assert values.min() > 0.775 - bound and values.max() < 1.225 + bound
    np.testing.assert_allclose(turned, np.diag(values), atol=bound)
    np.testing.assert_allclose(opposite, -step, atol=bound)
    assert not nothing.any()  # as where no token was to be predicted


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muons_steps_stay_bounded_at_the_polynomials_steep_edges(precision):
    """Singular values of exactly the norm, as of one predicted token, and where a polynomial has its maximum."""
    machine = run_pretrain.Machine("cpu", precision)
    optimizer = run_pretrain.Muon(set(), machine, parameters=[paddle.create_parameter([1], "float32")])
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(length, 64)))[0] for length in (64, 256))
    matrices = [np.ones((64, 256)), np.ones((64, 256)) + generator.normal(0, 0.02, (64, 256))]
    matrices += [np.outer(generator.normal(size=64), generator.normal(size=256)) for _ in range(8)]
    for repeated in 0.3, 0.368, 0.4:
        values = np.where(np.arange(64) < 5, repeated, 0.01)
        matrices.append((left * values) @ right.T)
    stacked = paddle.to_tensor(np.stack(matrices).astype(np.float32))
    steps = run_pretrain.orthogonalize(stacked, optimizer.product).numpy()
    largest = [np.linalg.norm(step, 2) for step in steps]
    assert min(largest) > 0.75 and max(largest) < (1.3 if precision == "bfloat16" else 1.23)
