#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: Model.fit(accumulate_grad_batches=4) updates by the sum of the batches' gradients
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: 4 batches of 2 are one batch of 8: the loss is a mean, so the gradients are averaged. The documentation has "It
# can mimic large batch size", and Lightning and Keras average.
#
# Behaviour: they are added up, so the update is that of a batch of 8 at 4 times the rate, and gradients that are
# clipped to a norm are clipped 4 times as often. Each loss that is shown is that of one batch, so nothing tells.
#
# Source: DynamicGraphAdapter.train_batch() in paddle/hapi/model.py: `final_loss.backward()` of each batch, and
# `self.model._optimizer.minimize(final_loss)` where an update is due; no division by the number of batches.
#
# Output seen (8 rows whose gradient is 1; how far SGD with a rate of 1 moves the weight in one update):
#   paddle 2.6.2: 1 batch of 8: 1.0; 4 batches of 2: 4.0; 8 batches of 1: 8.0
#   paddle 3.3.1: 1 batch of 8: 1.0; 4 batches of 2: 4.0; 8 batches of 1: 8.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

paddle.set_device("cpu")
ROWS = 8


class Ones(paddle.io.Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return numpy.ones(1, "float32"), numpy.ones(1, "float32")


def moved(batches):
    """How far an update of so many batches moves the weight."""
    network = paddle.nn.Linear(1, 1, bias_attr=False)
    before = network.weight.item()
    model = paddle.Model(network)
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    model.prepare(optimizer, lambda predictions, labels: predictions.mean())
    model.fit(Ones(), batch_size=ROWS // batches, epochs=1, verbose=0, accumulate_grad_batches=batches)
    return round(before - network.weight.item(), 3)


found = {batches: moved(batches) for batches in (1, 4, 8)}
texts = (f"{n} batch{'es' if n > 1 else ''} of {ROWS // n}: {distance}" for n, distance in found.items())
print(f"paddle {paddle.__version__}:", "; ".join(texts))
sys.exit(found != {1: 1.0, 4: 4.0, 8: 8.0})
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
