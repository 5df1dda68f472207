#!/usr/bin/env bash
# PaddleNLP 2.8.1: RobertaForMaskedLM loads a PyTorch checkpoint with one matrix of its head untransposed
#
# Versions: paddlenlp 2.8.1, paddlepaddle 3.3.1, numpy 2.3.5, safetensors 0.8.0, datasets 4.8.5, huggingface_hub 0.36.2,
# aistudio-sdk 0.2.6.
#
# Guess: from_pretrained(folder, convert_from_torch=True) gives a model with the checkpoint's logits. PyTorch's Linear
# keeps its weight as [out, in], Paddle's as [in, out]; so each linear layer's is transposed.
#
# Behaviour: each is but lm_head.dense.weight. It is square, so its shape fits both ways. Loading says "All model
# checkpoint weights were used", and its warnings name the pooler, which this model does not have, and
# lm_head.decoder, which is tied to the embedding; nothing of lm_head.dense. All logits are wrong. With this weight
# transposed by hand, they are right.
#
# Source: RobertaPretrainedModel._get_name_mappings() in paddlenlp/transformers/roberta/modeling.py: the mappings of the
# encoder's and the classifiers' linear layers end with "transpose"; below `if "RobertaForMaskedLM" in
# config.architectures`, there is a plain "lm_head.dense.weight".
#
# Output seen (a model of one layer of 8 with random weights; logits by PyTorch's formula of the head, in numpy):
#   transposed: the encoder's query weight True, lm_head.dense.weight False
#   largest error of a logit as loaded: 14.5
#   with lm_head.dense.weight transposed by hand: 0.00000
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlenlp==2.8.1 paddlepaddle==3.3.1 numpy==2.3.5 safetensors==0.8.0 datasets==4.8.5 huggingface_hub==0.36.2 \
    aistudio-sdk==0.2.6 setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import json
import math
import os
import sys

import numpy
import paddle
from paddlenlp.transformers import RobertaForMaskedLM
from safetensors.numpy import save_file

HIDDEN, INNER, VOCABULARY, POSITIONS = 8, 16, 20, 12
generator = numpy.random.default_rng(0)


def random(*shape):
    return generator.standard_normal(shape, numpy.float32)


def linear(name, outputs, inputs):
    return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}


def layer_norm(name):
    return {f"{name}.weight": random(HIDDEN), f"{name}.bias": random(HIDDEN)}


def save_checkpoint(folder):
    """A RoBERTa of one layer as transformers saves it: PyTorch's names and layout."""
    layer = "roberta.encoder.layer.0"
    weights = {
        "roberta.embeddings.word_embeddings.weight": random(VOCABULARY, HIDDEN),
        "roberta.embeddings.position_embeddings.weight": random(POSITIONS, HIDDEN),
        "roberta.embeddings.token_type_embeddings.weight": random(1, HIDDEN),
        **layer_norm("roberta.embeddings.LayerNorm"),
        **linear(f"{layer}.attention.self.query", HIDDEN, HIDDEN),
        **linear(f"{layer}.attention.self.key", HIDDEN, HIDDEN),
        **linear(f"{layer}.attention.self.value", HIDDEN, HIDDEN),
        **linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN),
        **layer_norm(f"{layer}.attention.output.LayerNorm"),
        **linear(f"{layer}.intermediate.dense", INNER, HIDDEN),
        **linear(f"{layer}.output.dense", HIDDEN, INNER),
        **layer_norm(f"{layer}.output.LayerNorm"),
        **linear("lm_head.dense", HIDDEN, HIDDEN),
        **layer_norm("lm_head.layer_norm"),
        "lm_head.bias": random(VOCABULARY),
    }
    config = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": VOCABULARY}
    config |= {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": INNER}
    config |= {"max_position_embeddings": POSITIONS, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    config |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    os.makedirs(folder)
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)
    return weights


def head_of_checkpoint(hidden, weights):
    """The head as PyTorch computes it: a linear layer is x weight^T + bias."""
    x = hidden @ weights["lm_head.dense.weight"].T + weights["lm_head.dense.bias"]
    x = x * (1 + numpy.vectorize(math.erf)(x / math.sqrt(2))) / 2  # GELU
    x = (x - x.mean(-1, keepdims=True)) / numpy.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * weights["lm_head.layer_norm.weight"] + weights["lm_head.layer_norm.bias"]
    return x @ weights["roberta.embeddings.word_embeddings.weight"].T + weights["lm_head.bias"]


folder = f"{sys.argv[1]}/checkpoint"
weights = save_checkpoint(folder)
model = RobertaForMaskedLM.from_pretrained(folder, convert_from_torch=True)
model.eval()
ids = paddle.to_tensor([[0, 5, 6, 7, 2]])
hidden = model.roberta(ids)[0].numpy()
expected = head_of_checkpoint(hidden, weights)
query = model.roberta.encoder.layers[0].self_attn.q_proj.weight.numpy()
dense = model.lm_head.dense.weight
is_transposed = [
    numpy.array_equal(query, weights["roberta.encoder.layer.0.attention.self.query.weight"].T),
    numpy.array_equal(dense.numpy(), weights["lm_head.dense.weight"].T),
]
print(f"transposed: the encoder's query weight {is_transposed[0]}, lm_head.dense.weight {is_transposed[1]}")
error = float(abs(model(ids).numpy() - expected).max())
print(f"largest error of a logit as loaded: {error:.1f}")
dense.set_value(dense.numpy().T)
mended = float(abs(model(ids).numpy() - expected).max())
print(f"with lm_head.dense.weight transposed by hand: {mended:.5f}")
sys.exit(not (is_transposed == [True, False] and error > 1 and mended < 1e-4))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder"
