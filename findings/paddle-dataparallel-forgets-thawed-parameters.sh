#!/usr/bin/env bash
# Paddle 2.6.2 and 3.3.1: a parameter that stop_gradient froze for one step is not averaged over the ranks afterwards
#
# Versions: paddlepaddle 3.3.1 and 2.6.2 (the same), numpy 1.26.4. Two processes on a CPU (gloo).
#
# Guess: a parameter's stop_gradient may be set and cleared during training, to freeze a layer for the first updates;
# paddle.DataParallel then averages its gradient over the ranks again, or refuses.
#
# Behaviour: with find_unused_parameters=False, which is the default, each rank keeps the gradient of its own batch from
# then on (seen for four steps). There is no exception; the ranks' weights drift apart, and the one that saves the
# checkpoint wins. With find_unused_parameters=True, or where the gradient is taken away after the backward pass
# (clear_gradient) instead of stop_gradient, the ranks have the mean.
#
# Source: the documentation of paddle.DataParallel on find_unused_parameters: "if all parameters are sure to participate
# in the loss calculation and the autograd graph construction, please set it False." In the first step one does not;
# from the second on they all do.
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

import numpy  # before paddle, as 2.6.2 wants it
import paddle
import paddle.distributed as dist

CASES = {  # what is done in the first step: by what the weight is frozen, find_unused_parameters
    "never frozen": (None, False),
    "frozen by stop_gradient in the first step": ("stop_gradient", False),
    "the same, find_unused_parameters=True": ("stop_gradient", True),
    "frozen by clear_gradient in the first step": ("clear_gradient", False),
}


def gradients_after_the_first_step(frozen_by, find_unused):
    model = paddle.nn.Sequential(paddle.nn.Linear(1, 1), paddle.nn.Linear(1, 1))
    for layer in model:
        layer.weight.set_value(paddle.ones([1, 1]))
    parallel = paddle.DataParallel(model, find_unused_parameters=find_unused)
    weight, found = model[0].weight, []
    for step in range(5):
        for parameter in model.parameters():
            parameter.clear_gradient(False)
        if frozen_by == "stop_gradient":
            weight.stop_gradient = step == 0
        parallel(paddle.full([1, 1], 1.0 + dist.get_rank())).sum().backward()
        if frozen_by == "clear_gradient" and step == 0:
            weight.clear_gradient(False)
        if step > 0:
            found.append(float(weight.grad))
    return found


dist.init_parallel_env()
gradients = {case: gradients_after_the_first_step(*how) for case, how in CASES.items()}
with open(f"{sys.argv[1]}.{dist.get_rank()}", "w") as file:
    json.dump(gradients, file)
PYTHON

failed=0
for version in 3.3.1 2.6.2; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        paddlepaddle==$version numpy==1.26.4 setuptools==75.8.0
    "$folder/$version/bin/python" -m paddle.distributed.launch --nproc_per_node 2 --log_dir "$folder/log" \
        "$folder/check.py" "$folder/$version.json" > "$folder/output" 2>&1 || { cat "$folder/output" "$folder"/log/workerlog.*; exit 1; }
    "$folder/$version/bin/python" - "$folder/$version.json" "$version" <<'PYTHON' || failed=1
import json
import sys

first, second = (json.load(open(f"{sys.argv[1]}.{rank}")) for rank in (0, 1))
found = []
for case, gradients in first.items():
    [pair] = set(zip(gradients, second[case])) if len(gradients) == 4 else [None]
    print(f"{sys.argv[2]} {case}: {pair[0]:g} and {pair[1]:g}")
    found.append(pair)
sys.exit(found != [(1.5, 1.5), (1, 2), (1.5, 1.5), (1.5, 1.5)])
PYTHON
done
exit $failed
