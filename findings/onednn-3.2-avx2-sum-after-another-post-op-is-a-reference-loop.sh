#!/usr/bin/env bash
# oneDNN 3.2.1 (Paddle 2.6.2), AVX2: a product that is masked or scaled, then added in place, runs in a reference loop
#
# Versions: paddlepaddle 2.6.2, which ships oneDNN 3.2.1, and 3.3.1 with oneDNN 3.6.2; numpy 2.3.5. On a processor
# with AVX2 or more; ONEDNN_MAX_CPU_ISA=AVX2 makes oneDNN choose as on one without AVX-512.
#
# Guess: of a residual branch with dropout, out = mask * (x W) * scale + residual, the last step costs least as the
# post-operation "sum", which adds to what is in the destination; "add" of another array has one more array to read.
#
# Behaviour: in float32 on AVX2, oneDNN 3.2.1 has a fast implementation for "sum" alone and for a chain that ends in
# "add", but none for "sum" behind another operation: it takes "ref:any", a loop over single values. There is no
# error; what was chosen shows in dnnl_primitive_desc_query(..., dnnl_query_impl_info_str). oneDNN 3.6.2 has a fast one
# for each.
#
# Source: the descriptions made below, queried. oneDNN's pages on post-operations say that they are executed in the
# order in which they were appended, and name no order that would be slow.
#
# Output seen (ONEDNN_MAX_CPU_ISA=AVX2):
#   paddle 2.6.2
#     sum: gemm:jit:f32
#     scale sum: ref:any
#     mask sum: ref:any
#     mask scale add: gemm:jit:f32
#     mask scale sum: ref:any
#   paddle 3.3.1
#     sum: gemm:jit:f32
#     scale sum: brg_matmul:avx2
#     mask sum: brg_matmul:avx2
#     mask scale add: gemm:jit:f32
#     mask scale sum: brg_matmul:avx2
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import ctypes
import os
import sys

import numpy  # before paddle, as 2.6.2 wants it
import paddle

dnn = ctypes.CDLL(os.path.join(os.path.dirname(paddle.__file__), "libs", "libdnnl.so.3"))
CPU, FLOAT32, ROW_MAJOR, NAME_OF_IMPLEMENTATION = 1, 3, 3, 8
ADD, MULTIPLY, LINEAR = 0x1FFF0, 0x1FFF1, 0x26


def made(create, *arguments):
    pointer = ctypes.c_void_p()
    assert getattr(dnn, create)(ctypes.byref(pointer), *arguments) == 0, create
    return pointer


def layout(rows, columns):
    return made("dnnl_memory_desc_create_with_tag", 2, (ctypes.c_int64 * 2)(rows, columns), FLOAT32, ROW_MAJOR)


engine = made("dnnl_engine_create", CPU, ctypes.c_size_t(0))


def implementation(*afterwards):
    x, weight, out = layout(512, 1024), layout(1024, 256), layout(512, 256)
    operations = made("dnnl_post_ops_create")
    for what in afterwards:
        if what == "sum":
            status = dnn.dnnl_post_ops_append_sum(operations, ctypes.c_float(1), 0, 0)
        elif what == "scale":
            status = dnn.dnnl_post_ops_append_eltwise(operations, LINEAR, ctypes.c_float(1.25), ctypes.c_float(0))
        else:
            status = dnn.dnnl_post_ops_append_binary(operations, {"mask": MULTIPLY, "add": ADD}[what], out)
        assert status == 0, what
    attributes = made("dnnl_primitive_attr_create")
    assert dnn.dnnl_primitive_attr_set_post_ops(attributes, operations) == 0
    description = made("dnnl_matmul_primitive_desc_create", engine, x, weight, None, out, attributes)
    name = ctypes.c_char_p()
    assert dnn.dnnl_primitive_desc_query(description, NAME_OF_IMPLEMENTATION, 0, ctypes.byref(name)) == 0
    return name.value.decode()


is_old = paddle.__version__.startswith("2.")
as_seen = True
print(f"paddle {paddle.__version__}")
for afterwards in ("sum",), ("scale", "sum"), ("mask", "sum"), ("mask", "scale", "add"), ("mask", "scale", "sum"):
    name = implementation(*afterwards)
    print(f"  {' '.join(afterwards)}: {name}")
    is_slow = is_old and afterwards[-1] == "sum" and len(afterwards) > 1
    as_seen &= name.startswith("ref") == is_slow
sys.exit(not as_seen)
PYTHON

export ONEDNN_MAX_CPU_ISA=AVX2
for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
