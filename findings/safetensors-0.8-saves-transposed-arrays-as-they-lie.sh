#!/usr/bin/env bash
# safetensors 0.8.0: save_file() of a transposed numpy array writes the values in another order, without a word
#
# Versions: safetensors 0.8.0, and 0.7.0, which is right; numpy 2.3.5.
#
# Guess: the array's values are written, or it is refused, as safetensors.paddle and safetensors.torch refuse a tensor
# that is not contiguous.
#
# Behaviour: the memory is written as it lies, under the array's shape. So a linear layer's weight that goes from
# Paddle's [in, out] to PyTorch's [out, in] by .T alone has its values in the wrong places; square ones, as attention's,
# pass any check of shapes. A slice of columns is wrong, too. Of np.ascontiguousarray() all is right.
#
# Source: _flatten() in safetensors/numpy.py hands over tensor.ctypes.data and tensor.nbytes, whatever the strides are.
# Issue 825 of huggingface/safetensors, open when this was written.
#
# Output seen:
#   safetensors 0.7.0: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] is read back as [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]; right: {'transposed': True, 'half': True, 'copy': True}
#   safetensors 0.8.0: [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] is read back as [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]; right: {'transposed': False, 'half': False, 'copy': True}
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

path = sys.argv[1] + "/model.safetensors"
weight = np.arange(6, dtype="float32").reshape(2, 3)  # as Paddle keeps a linear layer's: [in, out]
arrays = {"transposed": weight.T, "half": weight[:, :2], "copy": np.ascontiguousarray(weight.T)}
save_file(arrays, path)
loaded = load_file(path)
right = {name: bool(np.array_equal(loaded[name], arrays[name])) for name in arrays}
texts = weight.T.tolist(), loaded["transposed"].tolist()
print(f"safetensors {safetensors.__version__}:", "{} is read back as {};".format(*texts), "right:", right)
is_old = safetensors.__version__ == "0.7.0"
sys.exit(right != {"transposed": is_old, "half": is_old, "copy": True})
PYTHON
for version in 0.7.0 0.8.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check safetensors==$version numpy==2.3.5
    "$folder/$version/bin/python" "$folder/check.py" "$folder"
done
