"""Three updates, computed a second time: numpy in float64, written from the papers and not from the code it checks.

The model is BERT's encoder (Devlin et al., 2018; layers as in Vaswani et al., 2017) with RoBERTa's head, the update
AdamW (Loshchilov & Hutter, 2019) or Muon (Jordan et al., 2024), with a clipped gradient. The gradient comes from
reverse differentiation written out layer by layer. Nothing of run_pretrain.py is called but the run that is compared.
"""

import math

import numpy as np
import pytest
from conftest import around_updates, metrics
from safetensors.numpy import load_file

import run_pretrain

HEADS, PAD, EPSILON = 2, 1, 1e-5
PEAK, WARMUP, UPDATES, ACCUMULATION, MAX_NORM, DECAY = 1e-2, 2, 3, 3, 0.25, 0.1
BETA1, BETA2, ADAM_EPSILON = 0.9, 0.98, 1e-6
ERF = np.vectorize(math.erf)


def linear(x, weight, bias):
    def backward(grad, add):
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        add(weight=rows.T @ grads, bias=grads.sum(0))
        return grad @ weight.T

    return x @ weight + bias, backward


def layer_norm(x, weight, bias):
    centered = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + EPSILON)
    normal = centered / deviation

    def backward(grad, add):
        add(weight=(grad * normal).reshape(-1, x.shape[-1]).sum(0), bias=grad.reshape(-1, x.shape[-1]).sum(0))
        inner = grad * weight
        projected = inner.mean(-1, keepdims=True) + normal * (inner * normal).mean(-1, keepdims=True)
        return (inner - projected) / deviation

    return normal * weight + bias, backward


def gelu(x):
    share = (1 + ERF(x / math.sqrt(2))) / 2
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return x * share, lambda grad: grad * (share + x * density)


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


class Model:
    """The weights by PaddleNLP's names, and what is summed of their gradients."""

    def __init__(self, weights: dict):
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.gradients = {name: np.zeros_like(array) for name, array in self.weights.items()}

    def apply(self, operation, name: str, x):
        """An operation with a weight and a bias; returns its output and the function from its gradient to x's."""
        out, backward = operation(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

        def add(weight, bias):
            self.gradients[f"{name}.weight"] += weight
            self.gradients[f"{name}.bias"] += bias

        return out, lambda grad: backward(grad, add)

    def attention(self, name: str, hidden):
        batch, seq, width = hidden.shape

        def by_head(x):
            return x.reshape(batch, seq, HEADS, -1).swapaxes(1, 2)

        def joined(x):
            return x.swapaxes(1, 2).reshape(batch, seq, width)

        (query, back_query), (key, back_key), (value, back_value) = (
            self.apply(linear, f"{name}.{part}_proj", hidden) for part in "qkv"
        )
        query, key, value, scale = by_head(query), by_head(key), by_head(value), (width // HEADS) ** -0.5
        shares = softmax(query @ key.swapaxes(-1, -2) * scale)
        out, back_out = self.apply(linear, f"{name}.out_proj", joined(shares @ value))

        def backward(grad):
            grad = by_head(back_out(grad))
            by_shares = grad @ value.swapaxes(-1, -2)
            by_scores = shares * (by_shares - (by_shares * shares).sum(-1, keepdims=True)) * scale
            by_value = back_value(joined(shares.swapaxes(-1, -2) @ grad))
            return by_value + back_query(joined(by_scores @ key)) + back_key(joined(by_scores.swapaxes(-1, -2) @ query))

        return out, backward

    def layer(self, name: str, hidden):
        attended, back_attention = self.attention(f"{name}.self_attn", hidden)
        middle, back_norm1 = self.apply(layer_norm, f"{name}.norm1", hidden + attended)
        wide, back_linear1 = self.apply(linear, f"{name}.linear1", middle)
        active, back_gelu = gelu(wide)
        narrow, back_linear2 = self.apply(linear, f"{name}.linear2", active)
        out, back_norm2 = self.apply(layer_norm, f"{name}.norm2", middle + narrow)

        def backward(grad):
            grad = back_norm2(grad)
            grad = back_norm1(grad + back_linear1(back_gelu(back_linear2(grad))))
            return grad + back_attention(grad)

        return out, backward

    def loss(self, ids, labels) -> tuple[float, int]:
        """The sum of the losses where labels are not -100, and how many there are; adds the gradients of the sum."""
        words = self.weights["roberta.embeddings.word_embeddings.weight"]
        places = np.arange(ids.shape[1]) + PAD + 1
        embedded = words[ids] + self.weights["roberta.embeddings.position_embeddings.weight"][places]
        embedded = embedded + self.weights["roberta.embeddings.token_type_embeddings.weight"][0]
        hidden, back_embeddings = self.apply(layer_norm, "roberta.embeddings.layer_norm", embedded)
        back_layers = []
        for number in range(2):
            hidden, back = self.layer(f"roberta.encoder.layers.{number}", hidden)
            back_layers.append(back)
        dense, back_dense = self.apply(linear, "lm_head.dense", hidden)
        active, back_gelu = gelu(dense)
        normal, back_norm = self.apply(layer_norm, "lm_head.layer_norm", active)
        chosen = labels != -100
        probabilities = softmax(normal[chosen] @ words.T + self.weights["lm_head.bias"])
        picked = np.arange(chosen.sum()), labels[chosen]
        loss = -np.log(probabilities[picked]).sum()

        by_logits = probabilities.copy()
        by_logits[picked] -= 1
        self.gradients["lm_head.bias"] += by_logits.sum(0)
        by_words = self.gradients["roberta.embeddings.word_embeddings.weight"]
        by_words += by_logits.T @ normal[chosen]
        grad = np.zeros_like(normal)
        grad[chosen] = by_logits @ words
        grad = back_dense(back_gelu(back_norm(grad)))
        for back in reversed(back_layers):
            grad = back(grad)
        grad = back_embeddings(grad)
        np.add.at(by_words, ids, grad)
        np.add.at(self.gradients["roberta.embeddings.position_embeddings.weight"], places, grad.sum(0))
        self.gradients["roberta.embeddings.token_type_embeddings.weight"][0] += grad.sum((0, 1))
        return float(loss), int(chosen.sum())


def is_muons(name: str, weight) -> bool:
    return weight.ndim == 2 and "embeddings" not in name


def muon(weight, grad, momentum, rate: float):
    """A step of Muon, in place; returns the new momentum. The singular values themselves take the polynomial."""
    momentum = 0.95 * momentum + 0.05 * grad
    left, values, right = np.linalg.svd(0.05 * grad + 0.95 * momentum, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    first, second, third = (8.2218, -23.347, 16.6339), (3.9728, -2.8449, 0.517), (3.4735, -2.5057, 0.481)
    for a, b, c in first, second, third, (2.5044, -1.7907, 0.4071):
        values = a * values + b * values**3 + c * values**5
    weight -= rate * DECAY * weight
    weight -= rate * 0.2 * math.sqrt(max(weight.shape)) * (left * values) @ right
    return momentum


def adamw(model: Model, moments: dict, number: int, rate: float, with_muon: bool):
    for name, weight in model.weights.items():
        grad = model.gradients[name]
        if with_muon and is_muons(name, weight):
            moments[name] = muon(weight, grad, moments.get(name, 0.0), rate)
            continue
        first, second = moments.setdefault(name, (0.0, 0.0))
        first, second = BETA1 * first + (1 - BETA1) * grad, BETA2 * second + (1 - BETA2) * grad**2
        moments[name] = first, second
        if weight.ndim > 1:
            weight -= rate * DECAY * weight
        deviation = np.sqrt(second / (1 - BETA2**number)) + ADAM_EPSILON
        weight -= rate * (first / (1 - BETA1**number)) / deviation


def update(model: Model, moments: dict, number: int, batches: list, with_muon: bool) -> tuple[float, float]:
    """One update; returns the mean loss and the gradient's norm before clipping."""
    for gradient in model.gradients.values():
        gradient[...] = 0
    sums = [model.loss(batch["input_ids"], batch["labels"]) for batch in batches]
    loss, tokens = (sum(column) for column in zip(*sums))
    norm = math.sqrt(sum(((gradient / tokens) ** 2).sum() for gradient in model.gradients.values()))
    for gradient in model.gradients.values():
        gradient *= min(1, MAX_NORM / norm) / tokens
    rate = PEAK * number / WARMUP if number <= WARMUP else PEAK * (UPDATES - number + 1) / (UPDATES - WARMUP + 1)
    adamw(model, moments, number, rate, with_muon)
    return loss / tokens, norm


# Names that PaddleNLP gives to a tied tensor, or to one that masked language modelling does not use.
TIED = {"lm_head.decoder.weight", "lm_head.decoder.bias"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_updates_are_those_of_an_independent_computation(pretrain, monkeypatch, optimizer):
    start, batches = {}, []

    def before(run):
        if not start:
            start.update({name: tensor.numpy().copy() for name, tensor in run.model.state_dict().items()})

    around_updates(monkeypatch, before=before)
    real = run_pretrain.masked_loss

    def masked_loss(model, batch):
        if model.training:
            batches.append({name: batch[name].numpy().copy() for name in ("input_ids", "labels")})
        return real(model, batch)

    monkeypatch.setattr(run_pretrain, "masked_loss", masked_loss)
    options = f"--max_steps {UPDATES} --warmup_steps {WARMUP} --learning_rate {PEAK} --weight_decay {DECAY} --dropout 0"
    options += f" --optimizer {optimizer} --max_grad_norm {MAX_NORM}"
    options += f" --gradient_accumulation_steps {ACCUMULATION} --batch_size 4"
    output = pretrain(*options.split())
    assert len(batches) == UPDATES * ACCUMULATION

    model, moments = Model({name: array for name, array in start.items() if name not in TIED}), {}
    of_updates = [batches[i : i + ACCUMULATION] for i in range(0, len(batches), ACCUMULATION)]
    with_muon = optimizer == "muon"
    expected = [update(model, moments, number, given, with_muon) for number, given in enumerate(of_updates, start=1)]

    records = metrics(output, "train")
    assert [r["loss"] for r in records] == pytest.approx([loss for loss, _ in expected], rel=1e-5)
    assert [r["grad_norm"] for r in records] == pytest.approx([norm for _, norm in expected], rel=1e-4)
    assert min(norm for _, norm in expected) > MAX_NORM  # each was clipped
    weights = load_file(output / f"paddle_{UPDATES}/model.safetensors")
    assert len(model.weights) > 30 and set(weights) == set(model.weights) | TIED
    for name, array in model.weights.items():
        assert np.abs(weights[name] - array).max() <= 1e-5, name
        # Something was learned; but a bias of the keys adds the same to all scores of a query, which changes nothing.
        assert np.abs(array - start[name]).max() > 1e-3 or name.endswith("k_proj.bias"), name
