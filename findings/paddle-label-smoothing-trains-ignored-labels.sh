#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: with label_smoothing, cross_entropy() trains the labels that ignore_index excludes
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: cross_entropy(logits, labels, ignore_index=0, label_smoothing=0.1) leaves out the labels of 0, in the loss, its
# mean and its gradients, as without smoothing and as in PyTorch.
#
# Behaviour: with any smoothing, ignore_index does nothing. Each position that was to be ignored is trained to predict
# the token with that index, the padding say, and counts in the mean. There is no error, as long as ignore_index is the
# number of a class. So a translation or language model whose labels are padded with 0 learns to write padding, as soon
# as smoothing is switched on. In 3.3.1, the mean and its gradients are divided by the number of classes on top of that:
# a vocabulary of 50,000 makes them 50,000 times smaller. With labels of -100, it fails at making them one-hot.
#
# Source: cross_entropy() in paddle/nn/functional/loss.py: `if label_smoothing > 0.0: soft_label = True`, after which
# the labels become one_hot() ones, and nothing is looked up by ignore_index any more. Where the mean is taken, 3.3.1
# counts with `label != ignore_index` what is in the smoothed one-hot labels: all rows x classes of them. The
# documentation of ignore_index has "Only valid when soft_label = False", which is the default and is so for the caller;
# that smoothing sets it to True is not told.
#
# Output seen (labels 0, 1, 2, 0, random logits of 5 classes; of the mean's gradients, the sum of sizes by position):
#   paddle 2.6.2, without smoothing: losses [0.0, 0.88, 1.57, 0.0], mean 1.22, gradients [0.0, 0.59, 0.79, 0.0]
#   paddle 2.6.2, label_smoothing=0.1: losses [1.52, 0.97, 1.59, 1.81], mean 1.47, gradients [0.35, 0.25, 0.36, 0.38]
#   paddle 3.3.1, without smoothing: losses [0.0, 0.88, 1.57, 0.0], mean 1.22, gradients [0.0, 0.59, 0.79, 0.0]
#   paddle 3.3.1, label_smoothing=0.1: losses [1.52, 0.97, 1.59, 1.81], mean 0.29, gradients [0.07, 0.05, 0.07, 0.08]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy as np  # before paddle, as 2.6.2 wants it
import paddle
from paddle.nn.functional import cross_entropy

paddle.set_device("cpu")
logits = paddle.to_tensor(np.random.RandomState(0).randn(4, 5), "float32", stop_gradient=False)
labels = paddle.to_tensor([0, 1, 2, 0])
passed = True
for name, smoothing in (("without smoothing", 0.0), ("label_smoothing=0.1", 0.1)):
    options = {"ignore_index": 0, "label_smoothing": smoothing}
    losses = cross_entropy(logits, labels, reduction="none", **options).numpy().ravel()
    mean = cross_entropy(logits, labels, **options)
    gradients = np.abs(paddle.grad(mean, [logits])[0].numpy()).sum(1)
    rounded = [[round(float(value), 2) for value in values] for values in (losses, gradients)]
    print(f"paddle {paddle.__version__}, {name}: losses {rounded[0]}, mean {float(mean):.2f}, gradients {rounded[1]}")
    ignored = np.array([True, False, False, True])
    if smoothing:
        probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
        smoothed = (1 - smoothing) * np.eye(5)[[0, 1, 2, 0]] + smoothing / 5
        passed &= np.allclose(losses, -(smoothed * np.log(probabilities)).sum(1), atol=1e-5)
        count = 4 if paddle.__version__ == "2.6.2" else 4 * 5
        passed &= np.allclose(gradients, np.abs(probabilities - smoothed).sum(1) / count, atol=1e-5)
        passed &= np.isclose(float(mean), losses.sum() / count, atol=1e-5)
    else:
        passed &= not losses[ignored].any() and not gradients[ignored].any()
        passed &= np.isclose(float(mean), losses[~ignored].mean(), atol=1e-5)
sys.exit(not passed)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
