#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: a parameter that stop_gradient froze for one step is never averaged over the ranks again
#
# Versions: paddlepaddle 3.3.1 and 2.6.2 (the same), numpy 1.26.4. Two processes on a CPU (gloo).
#
# Guess: a parameter's stop_gradient may be set and cleared during training, to freeze a layer for the first updates;
# paddle.DataParallel then averages its gradient over the ranks again, or refuses.
#
# Behaviour: with find_unused_parameters=False, which is the default, each rank keeps the gradient of its own batch from
# then on. No exception, no warning; the ranks' weights drift apart, and the one that saves the checkpoint wins. With
# find_unused_parameters=True, or where the gradient is taken away after the backward pass (clear_gradient) instead of
# stop_gradient, the ranks have the mean.
#
# Source: the documentation of paddle.DataParallel on find_unused_parameters: "if all parameters are sure to participate
# in the loss calculation and the autograd graph construction, please set it False." In the second step they all do.
#
# Output seen (inputs 1 and 2, so that the mean of the gradients is 1.5):
#   3.3.1 never frozen: 1.5 and 1.5
#   3.3.1 frozen by stop_gradient in the first step: 1 and 2
#   3.3.1 the same, find_unused_parameters=True: 1.5 and 1.5
#   3.3.1 frozen by clear_gradient in the first step: 1.5 and 1.5
#   2.6.2 never frozen: 1.5 and 1.5
#   2.6.2 frozen by stop_gradient in the first step: 1 and 2
#   2.6.2 the same, find_unused_parameters=True: 1.5 and 1.5
#   2.6.2 frozen by clear_gradient in the first step: 1.5 and 1.5
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import json
import sys

import paddle
import paddle.distributed as dist

CASES = {  # what is done in the first step: by what the weight is frozen, find_unused_parameters
    "never frozen": (None, False),
    "frozen by stop_gradient in the first step": ("stop_gradient", False),
    "the same, find_unused_parameters=True": ("stop_gradient", True),
    "frozen by clear_gradient in the first step": ("clear_gradient", False),
}


def gradient_of_second_step(frozen_by, find_unused):
    model = paddle.nn.Sequential(paddle.nn.Linear(1, 1), paddle.nn.Linear(1, 1))
    for layer in model:
        layer.weight.set_value(paddle.ones([1, 1]))
    parallel = paddle.DataParallel(model, find_unused_parameters=find_unused)
    weight = model[0].weight
    for step in range(2):
        for parameter in model.parameters():
            parameter.clear_gradient(False)
        if frozen_by == "stop_gradient":
            weight.stop_gradient = step == 0
        parallel(paddle.full([1, 1], 1.0 + dist.get_rank())).sum().backward()
        if frozen_by == "clear_gradient" and step == 0:
            weight.clear_gradient(False)
    return float(weight.grad)


dist.init_parallel_env()
gradients = {case: gradient_of_second_step(*how) for case, how in CASES.items()}
with open(f"{sys.argv[1]}.{dist.get_rank()}", "w") as file:
    json.dump(gradients, file)
PYTHON

passed=0
for version in 3.3.1 2.6.2; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        paddlepaddle==$version numpy==1.26.4 setuptools==75.8.0
    "$folder/$version/bin/python" -m paddle.distributed.launch --nproc_per_node 2 --log_dir "$folder/log" \
        "$folder/check.py" "$folder/$version.json" > "$folder/output" 2>&1 || { tail -n 1 "$folder/output"; exit 1; }
    "$folder/$version/bin/python" - "$folder/$version.json" "$version" <<'PYTHON' || passed=1
import json
import sys

first, second = (json.load(open(f"{sys.argv[1]}.{rank}")) for rank in (0, 1))
for case, gradient in first.items():
    print(f"{sys.argv[2]} {case}: {gradient:g} and {second[case]:g}")
expected = [(1.5, 1.5), (1, 2), (1.5, 1.5), (1.5, 1.5)]
sys.exit([(first[case], second[case]) for case in first] != expected)
PYTHON
done
exit $passed
