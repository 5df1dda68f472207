#!/usr/bin/env bash
# paddle2onnx 2.1.0: an embedding with padding_idx is written with a second matrix of its size, all ones but one row
#
# Versions: paddle2onnx 2.1.0, paddlepaddle 3.3.1, onnx 1.17.0, onnxoptimizer 0.3.13, numpy 2.3.5.
#
# Guess: Embedding(5000, 64, padding_idx=1) is exported as one Gather from a matrix of 5000 x 64,
# 1.28 MB, like one without padding_idx: Paddle sets the padding's row of the weight to zeros, and forward passes
# need nothing more.
#
# Behaviour: the file has twice that: the weight, and a constant of 5000 x 64 that is 0 in row 1 and 1 elsewhere. All of
# the weight is multiplied by it before rows are looked up: at each run, where a runtime does not fold constants. For
# RoBERTa base (50,265 x 768), the file has 154 MB more. With padding_idx=None, there is neither.
#
# Source: LookupTableMapper::Opset11() in paddle2onnx/mapper/tensor/lookup_table.cc: `if (padding_idx_ != -1)` and all
# sizes of the weight are known, it fills a vector as large as the weight with ones, the padding's row with zeros, and
# writes it as a Constant and a Mul. Zeros in the padding's row of the weight itself would do the same.
#
# Output seen:
#   padding_idx None: 1280308 bytes; Constant [5000, 64], Gather
#   padding_idx 1: 2560407 bytes; Constant [5000, 64], Constant [5000, 64], Mul, Gather
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddle2onnx==2.1.0 paddlepaddle==3.3.1 onnx==1.17.0 onnxoptimizer==0.3.13 numpy==2.3.5 setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import os
import sys

import numpy
import onnx
import paddle
import paddle2onnx


class Model(paddle.nn.Layer):
    def __init__(self, padding_idx):
        super().__init__()
        self.embedding = paddle.nn.Embedding(5000, 64, padding_idx=padding_idx)

    def forward(self, ids):
        return self.embedding(ids)


def export(padding_idx):
    """What is in the ONNX file: its size, its operations, and the constants as arrays."""
    path = f"{sys.argv[1]}/{padding_idx}"
    model = Model(padding_idx)
    model.eval()
    paddle.jit.save(model, path, [paddle.static.InputSpec([None, None], "int64", "ids")])
    paddle2onnx.export(f"{path}.json", f"{path}.pdiparams", f"{path}.onnx", opset_version=14, optimize_tool="none")
    nodes = onnx.load(f"{path}.onnx").graph.node
    arrays = [onnx.numpy_helper.to_array(node.attribute[0].t) for node in nodes if node.op_type == "Constant"]
    shapes = iter(arrays)
    described = [f"Constant {list(next(shapes).shape)}" if n.op_type == "Constant" else n.op_type for n in nodes]
    size = os.path.getsize(f"{path}.onnx")
    print(f"padding_idx {padding_idx}: {size} bytes; {', '.join(described)}")
    return size, [node.op_type for node in nodes], arrays


without, operations_without, arrays_without = export(None)
size, operations, arrays = export(1)
mask = numpy.ones((5000, 64), numpy.float32)
mask[1] = 0
masks = [array for array in arrays if numpy.array_equal(array, mask)]
passed = operations_without == ["Constant", "Gather"] and operations == ["Constant", "Constant", "Mul", "Gather"]
sys.exit(not (passed and len(masks) == 1 and size > 1.99 * without))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
