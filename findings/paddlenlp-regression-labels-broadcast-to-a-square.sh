#!/usr/bin/env bash
# PaddleNLP 2.8.1: a RoBERTa fine-tuned for regression learns the mean of the labels, and nothing else
#
# Versions: paddlenlp 2.8.1, paddlepaddle 3.3.1, numpy 2.3.5, datasets 4.8.5, huggingface_hub 0.36.2, aistudio-sdk
# 0.2.6.
#
# Guess: RobertaForSequenceClassification with num_labels=1, called with labels of shape [rows], gives the mean of
# (prediction - label)^2 over the rows. Its documentation asks for labels "of shape (batch_size,)", and
# default_data_collator() makes such ones of {"label": 2.5}. transformers' model squeezes both.
#
# Behaviour: logits are [rows, 1], so their difference from the labels is [rows, rows]: each prediction is compared with
# each row's label. The smallest such loss is where all predictions are the mean of the batch's labels. There is no
# error, and the loss falls. With labels of shape [rows, 1], the model learns. By its source, so it is with DeBERTa.
#
# Source: RobertaForSequenceClassification.forward() in paddlenlp/transformers/roberta/modeling.py: `loss_fct =
# paddle.nn.MSELoss(); loss = loss_fct(logits, labels)`; mse_loss() of Paddle subtracts, which broadcasts. The same
# line in BERT's and ERNIE's files is `loss_fct(logits.squeeze(), labels.squeeze())`.
#
# Output seen (a model of one layer, 4 rows of one token each, labels 0, 1, 2, 5, trained for 300 steps):
#   labels of shape [4]: loss 3.50, predictions [2.0, 2.0, 2.0, 2.0]
#   labels of shape [4, 1]: loss 0.00, predictions [0.0, 1.0, 2.0, 5.0]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlenlp==2.8.1 paddlepaddle==3.3.1 numpy==2.3.5 datasets==4.8.5 huggingface_hub==0.36.2 aistudio-sdk==0.2.6 \
    setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import sys

import paddle
from paddlenlp.data import default_data_collator
from paddlenlp.transformers import RobertaConfig, RobertaForSequenceClassification

paddle.set_device("cpu")
ROWS = [{"input_ids": [0, 3 + row, 2], "label": label} for row, label in enumerate([0.0, 1.0, 2.0, 5.0])]
CONFIG = dict(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
CONFIG |= dict(max_position_embeddings=8, pad_token_id=1, type_vocab_size=1, num_labels=1)
batch = default_data_collator(ROWS)


def trained(labels):
    """The last loss of a training on these labels, and the predictions then."""
    paddle.seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(**CONFIG))
    model.eval()  # no dropout
    optimizer = paddle.optimizer.AdamW(3e-3, parameters=model.parameters(), weight_decay=0.0)
    for _ in range(300):
        loss, logits = model(batch["input_ids"], labels=labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    predictions = [round(value, 1) + 0.0 for value in logits.flatten().tolist()]
    print(f"labels of shape {list(labels.shape)}: loss {loss.item():.2f}, predictions {predictions}")
    return predictions


def are_near(predictions, expected):
    return all(abs(one - other) <= 0.1 for one, other in zip(predictions, expected))


flat, column = trained(batch["labels"]), trained(batch["labels"].unsqueeze(1))
sys.exit(not (are_near(flat, [2.0] * 4) and are_near(column, [0.0, 1.0, 2.0, 5.0])))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
