#!/usr/bin/env bash
# Paddle 2.6.2: BCEWithLogitsLoss(pos_weight=...) teaches a model the opposite of what it is asked for
#
# Versions: paddlepaddle 2.6.2, and 3.3.1 to compare; numpy 2.3.5. On a CPU.
#
# Guess: with weights over 1 for the positive labels, as for rare classes of a multi-label classifier, the loss of a
# label of 1 is weight * -log(sigmoid(logit)), and its gradient weight * (sigmoid(logit) - 1): below 0, so that the
# logit grows.
#
# Behaviour: the gradient is weight * sigmoid(logit) - 1. For a weight of 3 it is above 0 as soon as the probability is
# above 1/3: it draws each probability of a positive label to 1/weight, and the larger the weight, the lower. The loss
# is right for logits above 0; below, it lacks (weight - 1) * -logit, so a bad miss costs hardly more than without
# weights. There is no error.
#
# Source: SigmoidCrossEntropyWithLogitsGradKernel() and ...Kernel() in paddle/phi/kernels/cpu and
# paddle/phi/kernels/gpu: `simoid_x * pos_weight - label`. Issue 64226 of PaddlePaddle/Paddle, pull requests 64253
# (gradients, on a CPU and a GPU) and 65859 (the loss: 14.9 where 44.7 is right) mend it; neither is in 2.6.2.
#
# Output seen (labels of 1, a weight of 3; then a logit that begins at 0, trained to the label 1 for 200 steps of SGD):
#   paddle 2.6.2
#     logit 2: loss 0.381 (by the formula 0.381), gradient 1.642 (-0.358)
#     logit -3: loss 3.146 (by the formula 9.146), gradient -0.858 (-2.858)
#     trained to 1: probability 0.333 with pos_weight 3, 0.100 with 10, 0.990 with none
#   paddle 3.3.1
#     logit 2: loss 0.381 (by the formula 0.381), gradient -0.358 (-0.358)
#     logit -3: loss 9.146 (by the formula 9.146), gradient -2.858 (-2.858)
#     trained to 1: probability 0.997 with pos_weight 3, 0.999 with 10, 0.990 with none
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import math
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

paddle.set_device("cpu")
POSITIVE = paddle.ones([1])


def criterion(weight):
    return paddle.nn.BCEWithLogitsLoss(pos_weight=None if weight is None else paddle.to_tensor([weight]))


def loss_and_gradient(value):
    """Of a positive label with a weight of 3: loss and gradient as found, and by the formula."""
    logit = paddle.to_tensor([value], stop_gradient=False)
    loss = criterion(3.0)(logit, POSITIVE)
    loss.backward()
    probability = 1 / (1 + math.exp(-value))
    found, right = (loss.item(), logit.grad.item()), (-3 * math.log(probability), 3 * (probability - 1))
    shown = f"loss {found[0]:.3f} (by the formula {right[0]:.3f}), gradient {found[1]:.3f} ({right[1]:.3f})"
    print(f"  logit {value:.0f}: {shown}")
    return [abs(value - expected) < 1e-4 for value, expected in zip(found, right)]


def trained(weight):
    """The probability that a single logit has after training to a label of 1."""
    logit = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
    optimizer = paddle.optimizer.SGD(0.5, parameters=[logit])
    for _ in range(200):
        criterion(weight)(logit, POSITIVE).backward()
        optimizer.step()
        optimizer.clear_grad()
    return 1 / (1 + math.exp(-logit.item()))


print(f"paddle {paddle.__version__}")
are_right = loss_and_gradient(2.0) + loss_and_gradient(-3.0)
three, ten, none = map(trained, (3.0, 10.0, None))
print(f"  trained to 1: probability {three:.3f} with pos_weight 3, {ten:.3f} with 10, {none:.3f} with none")
if paddle.__version__ == "2.6.2":
    as_stated = are_right == [True, False, False, False] and abs(three - 1 / 3) < 0.01 and abs(ten - 0.1) < 0.01
else:
    as_stated = all(are_right) and min(three, ten) > 0.99
sys.exit(not as_stated or none < 0.98)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
