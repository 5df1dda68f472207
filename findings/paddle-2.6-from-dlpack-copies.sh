#!/usr/bin/env bash
# Paddle 2.6.2: paddle.utils.dlpack.from_dlpack() gives a copy; 3.3.1's shares the memory
#
# Versions: paddlepaddle 2.6.2, and 3.3.1 to compare; numpy 2.3.5. On a CPU.
#
# Guess: the tensor lies in the memory that is handed over. That is what DLPack is for, and what PyTorch's, JAX's and
# numpy's from_dlpack() do. Code that lays tensors into memory of its own, to use it again, relies on it.
#
# Behaviour: with 2.6.2 the tensor has memory of its own. What is written to the array later is not seen in the tensor,
# and for a while both are held. Nor does its documentation say which of the two it does.
#
# Source: from_dlpack() in paddle/utils/dlpack.py. In 2.6.2 it ends with `out = paddle.to_tensor(out)`, which copies; in
# 3.3.1 with `out = paddle.Tensor(out, place=out._place())`, and its documentation says that the memory is shared.
#
# Output seen:
#   paddle 2.6.2: the array's first element is set to 7, the tensor's is 0.0; same address: False
#   paddle 3.3.1: the array's first element is set to 7, the tensor's is 7.0; same address: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy
import paddle

paddle.set_device("cpu")
array = numpy.zeros(1024, numpy.float32)
tensor = paddle.utils.dlpack.from_dlpack(array.__dlpack__())
is_shared = tensor.data_ptr() == array.ctypes.data
array[0] = 7
first = tensor[0].item()
print(
    f"paddle {paddle.__version__}: the array's first element is set to 7, the tensor's is {first}; "
    f"same address: {is_shared}"
)
expected = (0.0, False) if paddle.__version__ == "2.6.2" else (7.0, True)
sys.exit((first, is_shared) != expected)
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
