#!/usr/bin/env bash
# Paddle 3.3.1: paddle.grad() by one of a PyLayer's inputs fails, where backward() and paddle.grad() by all succeed
#
# Versions: paddlepaddle 3.3.1, numpy 2.3.5 (2.6.2, tried by hand, does the same). On a CPU.
#
# Guess: A PyLayer whose backward() returns a gradient for each input works wherever Paddle's own operations do. What is
# not asked for is thrown away, as PyTorch does with its autograd.Function. Or, if it must be None, then the input says
# so in backward(): by stop_gradient, as a frozen weight's does.
#
# Behaviour: paddle.grad(loss, [x]) goes through a linear layer written as a PyLayer of x and w with an error: its
# backward() "should return None" for w, as that tensor's "stopgradient is true". But in backward() the stop_gradient of
# both is False, so no PyLayer can know. By w alone it fails at x. By both, and by loss.backward(), all is well;
# and so it is with paddle.matmul in its place. So a model with one PyLayer of weights knows no gradient by hidden
# states or embeddings alone (for adversarial training, probing, or integrated gradients): ask for the weights', too.
#
# Source: paddle/fluid/eager/pylayer/py_layer_node.cc: what backward() returns is held against the graph's own record of
# stop_gradient, in which paddle.grad() has cut the ways that it does not need. The documentation of
# PyLayer.backward: it returns as many tensors as forward() had; it knows of None only for inputs that stop gradients.
#
# Output seen (x = 2, w = 3):
#   paddle.grad by x: ValueError, should return None at 1 position; stop_gradient in backward(): False, False
#   paddle.grad by w: ValueError, should return None at 0 position; stop_gradient in backward(): False, False
#   paddle.grad by x and w: 3, 2
#   backward: 3, 2
#   paddle.matmul, paddle.grad by x: 3
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlepaddle==3.3.1 numpy==2.3.5 setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import re
import sys

import paddle


class Linear(paddle.autograd.PyLayer):
    stops = None

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return paddle.matmul(x, w)

    @staticmethod
    def backward(ctx, grad_out):
        x, w = ctx.saved_tensor()
        Linear.stops = x.stop_gradient, w.stop_gradient
        return paddle.matmul(grad_out, w, transpose_y=True), paddle.matmul(x, grad_out, transpose_x=True)


def gradients(product, names):
    inputs = {name: paddle.to_tensor([[value]], stop_gradient=False) for name, value in (("x", 2.0), ("w", 3.0))}
    out = product(inputs["x"], inputs["w"])
    try:
        return ", ".join(f"{float(gradient):g}" for gradient in paddle.grad(out, [inputs[name] for name in names]))
    except ValueError as error:
        position = re.search(r"should return None at \d position", str(error))[0]
        return f"ValueError, {position}; stop_gradient in backward(): {Linear.stops[0]}, {Linear.stops[1]}"


paddle.set_device("cpu")
x, w = (paddle.to_tensor([[value]], stop_gradient=False) for value in (2.0, 3.0))
Linear.apply(x, w).backward()
lines = [
    f"paddle.grad by x: {gradients(Linear.apply, 'x')}",
    f"paddle.grad by w: {gradients(Linear.apply, 'w')}",
    f"paddle.grad by x and w: {gradients(Linear.apply, 'xw')}",
    f"backward: {float(x.grad):g}, {float(w.grad):g}",
    f"paddle.matmul, paddle.grad by x: {gradients(paddle.matmul, 'x')}",
]
expected = [
    "paddle.grad by x: ValueError, should return None at 1 position; stop_gradient in backward(): False, False",
    "paddle.grad by w: ValueError, should return None at 0 position; stop_gradient in backward(): False, False",
    "paddle.grad by x and w: 3, 2",
    "backward: 3, 2",
    "paddle.matmul, paddle.grad by x: 3",
]
print("\n".join(lines))
sys.exit(lines != expected)
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" 2> "$folder/warnings" || { cat "$folder/warnings"; exit 1; }
