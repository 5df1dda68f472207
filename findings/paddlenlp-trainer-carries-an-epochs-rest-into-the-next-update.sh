#!/usr/bin/env bash
# PaddleNLP 2.8.1: Trainer adds the gradients that an epoch leaves over to the next epoch's first update
#
# Versions: paddlenlp 2.8.1, paddlepaddle 3.3.1, numpy 2.3.5, datasets 4.8.5, huggingface_hub 0.36.2, aistudio-sdk
# 0.2.6.
#
# Guess: as in Hugging Face's Trainer, after which it is written: batches that are too few for a whole update at the
# end of an epoch are an update of their own; or else they are left out.
#
# Behaviour: neither. Each of them has its backward pass, and no update follows; the next epoch counts from 0, and
# nothing clears their gradients. So its first update sums more batches than the others, each still divided by
# gradient_accumulation_steps. The last epoch's rest changes nothing.
#
# Source: Trainer._inner_training_loop() in paddlenlp/trainer/trainer.py: step_control = 0 at the start of each epoch;
# optimizer.clear_grad() stands only beside optimizer.step(); the one condition for an epoch's last batch is that an
# epoch has no more batches than an update.
#
# Output seen (5 batches an epoch, 2 an update, each batch's gradient is 1, two epochs):
#   gradients of the updates: [1.0, 1.0, 1.5, 1.0]
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
from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments


class Scale(paddle.nn.Layer):
    """loss = weight x, of one number: the gradient is x."""

    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([1])

    def forward(self, x):
        return ((self.weight * x).sum(),)


class Ones(paddle.io.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"x": [1.0]}


class Gradients(TrainerCallback):
    """The weight's gradient before each update."""

    def __init__(self):
        self.seen = []

    def on_optimizer_begin(self, args, state, control, model=None, **others):
        self.seen.append(model.weight.grad.item())


model, gradients = Scale(), Gradients()
rate = paddle.optimizer.lr.LambdaDecay(0.1, lambda step: 1.0)
arguments = TrainingArguments(
    output_dir=sys.argv[1],
    per_device_train_batch_size=1,
    gradient_accumulation_steps=2,
    num_train_epochs=2,
    device="cpu",
    disable_tqdm=True,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
)
Trainer(
    model=model,
    args=arguments,
    train_dataset=Ones(),
    optimizers=(paddle.optimizer.SGD(rate, parameters=model.parameters()), rate),
    callbacks=[gradients],
).train()
print("gradients of the updates:", gradients.seen)
sys.exit(gradients.seen != [1.0, 1.0, 1.5, 1.0])
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder/output" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
