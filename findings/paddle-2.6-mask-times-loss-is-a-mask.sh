#!/usr/bin/env bash
# Paddle 2.6.2: a mask times the losses has the type of the mask: the masked mean is wrong, and all its gradients are 0
#
# Versions: paddlepaddle 2.6.2, and 3.3.1 to compare; numpy 2.3.5. On a CPU.
#
# Guess: a tensor of bool or whole numbers times one of float32 is float32, as in numpy and PyTorch, in either order. So
# ((labels != -100) * losses).sum() / (labels != -100).sum() is the mean of the masked tokens' losses.
#
# Behaviour: with 2.6.2 the right operand is cast to the type of the left one. A bool mask times losses
# is bool, and the mean is the share of losses that are not 0: 1.0 from the first update to the last. A mask of int64
# cuts each loss down to a whole number. backward() runs, and leaves gradients of 0, since 1 / the number of tokens is
# cast to a whole number on its way back: nothing is learned. With losses * mask, all is right. 3.3.1 refuses both.
#
# Source: tensor__mul__method() and those beside it in paddle/fluid/pybind/eager_math_op_patch.cc; what would tell, "the
# right dtype will convert to", is logged at level 6 there, and was a warning in earlier releases. Pull request 61163 of
# PaddlePaddle/Paddle calls it "unreasonable type promotion in Paddle, which the previous logic was aligned to the left
# tensor". Paddle 3's guide "Introduction to Data Type Promotion" has it that tensors of other types than
# floating-point and complex ones are not promoted.
#
# Output seen (losses 0.5, 2.75 and 3.5 of three tokens, of which the first two are masked; their mean is 1.625):
#   paddle 2.6.2
#     bool mask * losses: mean 1.0, gradients [0.0, 0.0, 0.0]
#     losses * bool mask: mean 1.625, gradients [0.5, 0.5, 0.0]
#     int64 mask * losses: mean 1.0, gradients [0.0, 0.0, 0.0]
#     losses * int64 mask: mean 1.625, gradients [0.5, 0.5, 0.0]
#   paddle 3.3.1
#     bool mask * losses: TypeError
#     losses * bool mask: TypeError
#     int64 mask * losses: TypeError
#     losses * int64 mask: TypeError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import operator
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

paddle.set_device("cpu")
labels = paddle.to_tensor([7, 9, -100])


def masked_mean(kind, is_mask_left):
    """The mean of the masked tokens' losses and its gradients, or the error's name."""
    losses = paddle.to_tensor([0.5, 2.75, 3.5], stop_gradient=False)
    mask = (labels != -100).astype(kind)
    operands = (mask, losses) if is_mask_left else (losses, mask)
    name = f"{kind} mask * losses" if is_mask_left else f"losses * {kind} mask"
    try:
        mean = operator.mul(*operands).sum() / mask.sum()
        mean.backward()
        found = mean.item(), losses.grad.tolist()
        print(f"  {name}: mean {found[0]}, gradients {found[1]}")
    except TypeError as error:
        found = type(error).__name__
        print(f"  {name}: {found}")
    return found


print(f"paddle {paddle.__version__}")
found = [masked_mean(kind, is_mask_left) for kind in ("bool", "int64") for is_mask_left in (True, False)]
expected = [(1.0, [0.0, 0.0, 0.0]), (1.625, [0.5, 0.5, 0.0])] * 2
if paddle.__version__ != "2.6.2":
    expected = ["TypeError"] * 4
sys.exit(found != expected)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
