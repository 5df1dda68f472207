#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: a parameter's own learning rate (ParamAttr) is reset to 1 where an optimizer gets groups
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: ParamAttr(learning_rate=0.1) is a factor of the parameter's rate, and stays one however the parameters are
# handed to the optimizer; a group that says nothing of a rate changes none.
#
# Behaviour: with parameters in a list the factor holds. In groups, as with and without weight decay, each parameter
# gets the group's factor, which is 1 where the group names none. The parameter itself is changed: a later optimizer
# that gets the list again goes on without the factor. So layer-wise rates that were given by ParamAttr end, without a
# word, when somebody adds a group for the weight decay.
#
# Source: Optimizer._add_param_group() in paddle/optimizer/optimizer.py and AdamW's in adamw.py:
# param.optimize_attr["learning_rate"] = param_group.get("learning_rate", 1.0).
#
# Output seen (one step of SGD at a rate of 1, gradients of 1; the steps of a weight whose own rate is 0.1):
#   paddle 2.6.2: in a list 0.1, in groups 1.0, in a list again 1.0
#   paddle 3.3.1: in a list 0.1, in groups 1.0, in a list again 1.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

paddle.set_device("cpu")
attribute = paddle.ParamAttr(learning_rate=0.1, initializer=paddle.nn.initializer.Constant(0.0))
slow = paddle.create_parameter([1], "float32", attr=attribute)
usual = paddle.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))


def step(parameters):
    """How far one step of SGD moves the slow parameter."""
    before = slow.item()
    optimizer = paddle.optimizer.SGD(1.0, parameters=parameters)
    (slow + usual).sum().backward()
    optimizer.step()
    optimizer.clear_grad()
    return round(before - slow.item(), 6)


groups = [{"params": [slow], "weight_decay": 0.0}, {"params": [usual], "weight_decay": 0.0}]
found = [step([slow, usual]), step(groups), step([slow, usual])]
print(f"paddle {paddle.__version__}: in a list {found[0]}, in groups {found[1]}, in a list again {found[2]}")
sys.exit(found != [0.1, 1.0, 1.0])
PYTHON
for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        paddlepaddle==$version numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
done
