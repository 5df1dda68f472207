#!/usr/bin/env bash
# Paddle 2.6.2, 3.3.1: token ids in uint16 become a tensor of bfloat16, by to_tensor() and by DataLoader
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: a tensor of whole numbers with the same values, or an error, as Paddle has no uint16. Many corpora for
# pretraining keep the ids of a vocabulary below 65,536 in uint16, which PyTorch and numpy take for what they are.
#
# Behaviour: the bits are taken for those of bfloat16. Ids 1 and 2 become 9e-41 and 2e-40, and 50264 becomes -864; cast
# to int64 they are 0, 0 and -864, without an error. A batch that DataLoader collates is the same. All ids below 16,256,
# which is bfloat16's 1.0, become 0, so with a small vocabulary a model trains on <s> alone. With .astype("int64")
# before the tensor is made, the ids are right.
#
# Source: Paddle stands for bfloat16 by numpy's uint16: "Now numpy does not support bfloat, so use numpy.uint16 to
# represent paddle.bfloat16" (paddle/base/data_feeder.py, beside `core.VarDesc.VarType.BF16: 'uint16'`). The
# documentation of paddle.to_tensor() says "Keep dtype" of numpy arrays.
#
# Output seen (the same with both versions):
#   paddle 2.6.2: ids [1, 2, 50264] in uint16: bfloat16, as int64 [0, 0, -864]; in a batch bfloat16; cast before: [1, 2, 50264]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys

import numpy
import paddle

paddle.set_device("cpu")
ids = numpy.array([1, 2, 50264], numpy.uint16)


class Rows(paddle.io.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return ids


def name_of(tensor):
    return str(tensor.dtype).removeprefix("paddle.")


tensor = paddle.to_tensor(ids)
batch = next(iter(paddle.io.DataLoader(Rows(), batch_size=2, return_list=True)))
batch = batch[0] if isinstance(batch, list) else batch
as_integers, cast_before = tensor.astype("int64").tolist(), paddle.to_tensor(ids.astype("int64")).tolist()
print(
    f"paddle {paddle.__version__}: ids {ids.tolist()} in uint16: {name_of(tensor)}, as int64 {as_integers}; "
    f"in a batch {name_of(batch)}; cast before: {cast_before}"
)
found = name_of(tensor), as_integers, name_of(batch), cast_before
sys.exit(found != ("bfloat16", [0, 0, -864], "bfloat16", ids.tolist()))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
