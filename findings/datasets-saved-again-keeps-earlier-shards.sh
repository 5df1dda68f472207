#!/usr/bin/env bash
# datasets 4.8.5: save_to_disk() into a directory that it wrote before leaves the earlier shards beside the new ones
#
# Versions: datasets 4.8.5, pyarrow 26.0.1.
#
# Guess: a data set that is saved to a directory that has one replaces it, or is refused.
#
# Behaviour: the files are named by number and count (data-00000-of-00003.arrow). With another count, which follows the
# size by itself, the earlier files stay. load_from_disk() reads what state.json names; load_dataset("arrow") of the
# directory's files, and any other reader of *.arrow, gets the rows of both, those that had been filtered out, too.
#
# Source: Dataset.save_to_disk() in datasets/arrow_dataset.py: fs.makedirs(dataset_path, exist_ok=True), and nothing
# that deletes.
#
# Output seen:
#   saved 40 rows as 4 files, then 30 as 3: load_from_disk 30 rows, files 7, load_dataset of them 70 rows
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check datasets==4.8.5 pyarrow==26.0.1

cat > "$folder/check.py" <<'PYTHON'
import glob
import sys

import datasets

datasets.disable_progress_bars()
path = sys.argv[1] + "/saved"
rows = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(40)]})
rows.save_to_disk(path, num_shards=4)
rows.select(range(30)).save_to_disk(path, num_shards=3)
files = glob.glob(path + "/*.arrow")
loaded = datasets.load_from_disk(path)
read = datasets.load_dataset("arrow", data_files=path + "/*.arrow", split="train", cache_dir=sys.argv[1] + "/cache")
print(
    f"saved 40 rows as 4 files, then 30 as 3: load_from_disk {len(loaded)} rows, files {len(files)}, "
    f"load_dataset of them {len(read)} rows"
)
sys.exit((len(loaded), len(files), len(read)) != (30, 7, 70))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder"
