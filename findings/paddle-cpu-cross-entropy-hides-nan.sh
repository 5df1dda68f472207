#!/usr/bin/env bash
# Paddle 2.6.2, 3.3.1: on a CPU, the cross entropy of logits that are NaN is a finite loss with finite gradients
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU, in float32.
#
# Guess: NaN is passed on. A loss that is checked for NaN then tells when a model has broken, as in PyTorch.
#
# Behaviour: from 8 classes on, softmax() and cross_entropy() take a logit that is NaN for one that is 64 below the
# highest, or all for equal where the first is NaN. The loss and its gradients are finite: of 64 logits that are 0 but
# for one NaN in the middle, the loss is log 63, of 64 NaN log 64, that of a model that knows nothing. With up to 7
# classes, or where the NaN is among the last (classes % 8) ones, the loss is NaN.
#
# Source: SoftmaxFunctor in paddle/phi/kernels/funcs/softmax_impl.h subtracts std::max_element() and clips at -64 by
# vec_clip() of cpu_vec.h beside it. That is _mm256_max_ps(x, threshold) in groups of 8, which gives the second operand
# where the first is NaN (as Intel documents MAXPS), and `x < threshold ? threshold : x` for the rest, which gives NaN.
#
# Output seen (and the same with 3.3.1):
#   paddle 2.6.2: loss, and whether all of its gradients are finite, where of logits 0 these are NaN
#     of 4 the first: nan False; of 64 the middle: 4.1431 True, all: 4.1589 True; of 65 the last: nan False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import math
import sys

import numpy
import paddle
import paddle.nn.functional as F


def loss_of(classes, broken):
    """The loss of label 1 where the broken logits are NaN and the others 0; whether all gradients are finite."""
    values = numpy.zeros([1, classes], numpy.float32)
    values[0, broken] = math.nan
    logits = paddle.to_tensor(values, stop_gradient=False)
    loss = F.cross_entropy(logits, paddle.to_tensor([1]))
    loss.backward()
    return f"{loss.item():.4f}", bool(numpy.isfinite(logits.grad.numpy()).all())


paddle.set_device("cpu")
few, middle, every, last = loss_of(4, 0), loss_of(64, 32), loss_of(64, slice(None)), loss_of(65, 64)
print(f"paddle {paddle.__version__}: loss, and whether all of its gradients are finite, where of logits 0 these are NaN")
print(
    f"  of 4 the first: {few[0]} {few[1]}; of 64 the middle: {middle[0]} {middle[1]}, all: {every[0]} {every[1]}; "
    f"of 65 the last: {last[0]} {last[1]}"
)
hidden = (f"{math.log(63):.4f}", True), (f"{math.log(64):.4f}", True)
sys.exit((few, middle, every, last) != (("nan", False), *hidden, ("nan", False)))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
