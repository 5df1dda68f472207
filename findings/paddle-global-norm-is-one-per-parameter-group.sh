#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: ClipGradByGlobalNorm clips each parameter group by the group's own norm
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: one norm over all gradients that the optimizer holds, whether its parameters come as a list or as groups, say,
# with and without weight decay. So it is with PyTorch's clip_grad_norm_(model.parameters(), 1.0).
#
# Behaviour: with groups, each has a norm of its own, and is scaled by it. Together they may have the square root of the
# number of groups times the norm that was asked for, and the direction of the update changes: biases, whose gradients
# are small, are not scaled down where the matrices are. A run that splits its parameters into two groups for the
# decay, and changes nothing else, trains by other updates. There is no error.
#
# Source: Optimizer.step() in paddle/optimizer/optimizer.py, and AdamW.step() in adamw.py beside it, call
# _apply_optimize() for each group, and that clips what it is given. The documentation of ClipGradByGlobalNorm: "The
# list of Tensor t_list is not passed from this class, but the gradients of all parameters set in optimizer."
#
# Output seen (two gradients, 30 and 0.4, clipped to a norm of 1; the same with both versions):
#   paddle 2.6.2
#     SGD, a list: [0.9999, 0.0133]
#     SGD, two groups: [1.0, 0.4]
#     AdamW, a list: [0.9999, 0.0133]
#     AdamW, two groups: [1.0, 0.4]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

paddle.set_device("cpu")
GRADIENTS = 30.0, 0.4


def clipped(optimizer_class, has_groups):
    """Two gradients as the optimizer uses them: from SGD's first step, or AdamW's first moment."""
    zero = paddle.nn.initializer.Constant(0.0)
    matrix, bias = (paddle.create_parameter([1], "float32", default_initializer=zero) for _ in GRADIENTS)
    parameters = [{"params": [matrix]}, {"params": [bias], "weight_decay": 0.0}] if has_groups else [matrix, bias]
    clip = paddle.nn.ClipGradByGlobalNorm(1.0)
    optimizer = optimizer_class(1.0, parameters=parameters, grad_clip=clip, weight_decay=0.0)
    (GRADIENTS[0] * matrix + GRADIENTS[1] * bias).sum().backward()
    optimizer.step()
    if optimizer_class is paddle.optimizer.SGD:
        used = [-matrix.item(), -bias.item()]
    else:
        moments = {name: value for name, value in optimizer.state_dict().items() if "moment1" in name}
        used = [value.item() / 0.1 for p in (matrix, bias) for name, value in moments.items() if p.name in name]
    used = [round(value, 4) for value in used]
    print(f"  {optimizer_class.__name__}, {'two groups' if has_groups else 'a list'}: {used}")
    return used


print(f"paddle {paddle.__version__}")
classes = paddle.optimizer.SGD, paddle.optimizer.AdamW
found = [clipped(optimizer_class, has_groups) for optimizer_class in classes for has_groups in (False, True)]
sys.exit(found != [[0.9999, 0.0133], [1.0, 0.4]] * 2)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
