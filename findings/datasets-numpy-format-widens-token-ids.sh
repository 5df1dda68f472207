#!/usr/bin/env bash
# datasets 4.8.5: rows of uint16 come as int64 from with_format("numpy"), a copy four times as large
#
# Versions: datasets 4.8.5, numpy 2.3.5, pyarrow 26.0.1.
#
# Guess: an array of the column's own type: the data set's features say uint16, Arrow keeps it so, and numpy has it.
#
# Behaviour: lists of whole numbers of any width become int64, lists of floats float32 (a column of float64 loses
# digits); single numbers keep their type. With with_format("numpy", dtype="uint16") all columns get that type. What
# the formatted data set says of its features stays the same.
#
# Source: NumpyFormatter._tensorize() in datasets/formatting/np_formatter.py: default_dtype is np.int64 for arrays of
# integers and np.float32 for arrays of floats.
#
# Output seen:
#   features: ids List(Value('uint16')), losses List(Value('float64')); in numpy's format: int64, float32; asked for: uint16
#   6 bytes of ids become 24; a single number: uint16
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    datasets==4.8.5 numpy==2.3.5 pyarrow==26.0.1

cat > "$folder/check.py" <<'PYTHON'
import sys

import datasets
import pyarrow

table = pyarrow.table(
    {
        "ids": pyarrow.array([[1, 2, 50264]], pyarrow.list_(pyarrow.uint16())),
        "losses": pyarrow.array([[0.1, 0.2, 0.3]], pyarrow.list_(pyarrow.float64())),
        "number": pyarrow.array([7], pyarrow.uint16()),
    }
)
rows = datasets.Dataset(table)
formatted = rows.with_format("numpy")
row = formatted[0]
asked_for = rows.select_columns(["ids"]).with_format("numpy", dtype="uint16")[0]["ids"].dtype
found = [str(dtype) for dtype in (row["ids"].dtype, row["losses"].dtype, asked_for)]
print(
    f"features: ids {formatted.features['ids']}, losses {formatted.features['losses']}; "
    f"in numpy's format: {found[0]}, {found[1]}; asked for: {found[2]}"
)
before, after = 2 * 3, row["ids"].nbytes
print(f"  {before} bytes of ids become {after}; a single number: {row['number'].dtype}")
as_seen = found == ["int64", "float32", "uint16"] and after == 4 * before and row["number"].dtype == "uint16"
sys.exit(not (as_seen and formatted.features == rows.features))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py"
