#!/usr/bin/env bash
# Paddle 3.3.1: optimizers, set_value() and set_state_dict() change a tensor and leave its inplace_version as it was
#
# Versions: paddlepaddle 3.3.1, numpy 2.3.5. On a CPU.
#
# Guess: inplace_version grows with each change in place, an optimizer's step above all, as PyTorch's _version does. So
# a copy kept with the version at which it was made (say, a weight rounded to bfloat16) tells when it is stale, and a
# backward pass that needs the old value is refused.
#
# Behaviour: the version grows with add_() and with an assignment to an index. It does not with the steps of SGD,
# Momentum, Adam, AdamW and Lamb, nor with set_value(), set_state_dict() and copy_(). A copy keyed on it goes stale
# unnoticed. And where such a change comes between forward and backward pass, the gradient is computed with the new
# value without an error, where after add_() it is refused.
#
# Source: the documentation of Tensor.inplace_version: "The version number is incremented whenever the current Tensor is
# modified through an inplace operation." Tensor.set_value() in paddle/base/dygraph/tensor_patch_methods.py calls
# set_tensor() or get_tensor().set(), and Optimizer.step() the kernels sgd_, adam_, ...; none counts.
#
# Output seen (the gradient of x * w for x = 3, w = 2 is 2 by x; then w is changed to 7 before the backward pass):
#   SGD, Momentum, Adam, AdamW, Lamb, set_value, set_state_dict, copy_: changed, version 0 -> 0
#   add_, assignment: changed, version 0 -> 1
#   add_ between forward and backward: refused
#   set_value between forward and backward: gradient 7
#   SGD between forward and backward: gradient 7
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlepaddle==3.3.1 numpy==2.3.5 setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import sys

import paddle

OPTIMIZERS = "SGD", "Momentum", "Adam", "AdamW", "Lamb"
CHANGES = {
    "set_value": lambda layer: layer.weight.set_value(paddle.to_tensor([[7.0]])),
    "set_state_dict": lambda layer: layer.set_state_dict({"weight": paddle.to_tensor([[7.0]])}),
    "copy_": lambda layer: layer.weight.copy_(paddle.to_tensor([[7.0]]), True),
    "add_": lambda layer: layer.weight.add_(paddle.to_tensor([[5.0]])),
    "assignment": lambda layer: layer.weight.__setitem__(0, 7.0),
}
COUNTED = "add_", "assignment"


def new_layer():
    return paddle.nn.Linear(1, 1, paddle.ParamAttr(initializer=paddle.nn.initializer.Constant(2.0)), False)


def step(name, layer, rate=0.5):
    optimizer = getattr(paddle.optimizer, name)(learning_rate=rate, parameters=layer.parameters())
    layer.weight.grad = paddle.to_tensor([[-5.0]])
    optimizer.step()


def version_after(change):
    layer = new_layer()
    before = layer.weight.inplace_version, float(layer.weight)
    with paddle.no_grad():
        change(layer)
    if float(layer.weight) == before[1]:
        sys.exit("The weight has not changed.")
    return before[0], layer.weight.inplace_version


def gradient_after(change):
    layer, x = new_layer(), paddle.to_tensor([[3.0]], stop_gradient=False)
    out = layer(x)
    with paddle.no_grad():
        change(layer)
    try:
        out.backward()
    except RuntimeError as error:
        return "refused" if "modified by an inplace operation" in str(error) else str(error)
    return f"gradient {float(x.grad):g}"


paddle.set_device("cpu")
passed = True
changes = {name: lambda layer, name=name: step(name, layer) for name in OPTIMIZERS} | CHANGES
for name, change in changes.items():
    versions = version_after(change)
    print(f"{name}: changed, version {versions[0]} -> {versions[1]}")
    passed &= versions == ((0, 1) if name in COUNTED else (0, 0))
expected = {"add_": "refused", "set_value": "gradient 7", "SGD": "gradient 7"}
changes["SGD"] = lambda layer: step("SGD", layer, rate=1.0)
for name, result in expected.items():
    seen = gradient_after(changes[name])
    print(f"{name} between forward and backward: {seen}")
    passed &= seen == result
sys.exit(not passed)
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py"
