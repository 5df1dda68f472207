#!/usr/bin/env bash
# Paddle 3.3.1: the mean of cross_entropy() divides by the ignored labels, too, if ignore_index is negative
#
# Versions: paddlepaddle 3.3.1, and 2.6.2 to compare; numpy 2.3.5. On a CPU.
#
# Guess: with ignore_index=-100, its default, reduction="mean" is the mean over the labels that
# are not ignored, as in PyTorch and in Paddle 2.6.2. A masked language model, whose labels are -100 at 85% of
# the positions, relies on it.
#
# Behaviour: labels of -100 add nothing to the sum, but are counted in what it is divided by. With ignore_index=0
# they are not, nor with ignore_index=-100 and a weight of 1 for each class. So a masked language model trained with
# CrossEntropyLoss() has some 0.15 of the loss and gradients of 2.6.2, and a batch with more padding weighs less.
#
# Source: cross_entropy() in paddle/nn/functional/loss.py. 3.3.1 counts labels below `if ignore_index >= 0:` only, and
# else returns `_C_ops.mean_all(out)`; a comment above still says "denominator: count sample num with
# class_index!=ignore_index". 2.6.2 has `if paddle.count_nonzero(is_ignore) > 0:` there. The documentation of both
# says that "a negative value means that no label value needs to be ignored", but both ignore -100. PaddleNLP 2.8.1's
# RobertaForMaskedLM calls paddle.nn.CrossEntropyLoss() with the comment "-100 index = padding token".
#
# Output seen:
#   paddle 2.6.2, in units of log 3: losses [1.0, 0.0, 0.0, 1.0]
#     means: [1.0] ignoring -100, [1.0] ignoring 0, [1.0] ignoring -100 with weights of 1
#   paddle 3.3.1, in units of log 3: losses [1.0, 0.0, 0.0, 1.0]
#     means: [0.5] ignoring -100, [1.0] ignoring 0, [1.0] ignoring -100 with weights of 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import math
import sys

import paddle
import paddle.nn.functional as F

logits = paddle.zeros([4, 3])  # three classes of equal probability: the loss of each label is log 3


def losses(ignored, **options):
    labels = paddle.to_tensor([1, ignored, ignored, 2])
    result = F.cross_entropy(logits, labels, ignore_index=ignored, **options)
    return [round(loss / math.log(3), 4) for loss in result.flatten().tolist()]  # in units of log 3


paddle.set_device("cpu")
each = losses(-100, reduction="none")
means = losses(-100), losses(0), losses(-100, weight=paddle.ones([3]))
print(f"paddle {paddle.__version__}, in units of log 3: losses {each}")
print(f"  means: {means[0]} ignoring -100, {means[1]} ignoring 0, {means[2]} ignoring -100 with weights of 1")
expected = ([1.0] if paddle.__version__ == "2.6.2" else [0.5]), [1.0], [1.0]
sys.exit(each != [1, 0, 0, 1] or means != expected)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
