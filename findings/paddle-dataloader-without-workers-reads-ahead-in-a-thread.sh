#!/usr/bin/env bash
# Paddle 2.6.2, 3.3.1: DataLoader(num_workers=0) reads five batches ahead, in a thread of its own
#
# Versions: paddlepaddle 2.6.2 and 3.3.1; numpy 2.3.5. On a CPU.
#
# Guess: without workers, a batch is read when it is asked for, by the thread that asks, as in PyTorch. A data set may
# then hold things that belong to a thread, and what a checkpoint says of its position is what was used.
#
# Behaviour: the data set's __getitem__() is called in another thread from the moment on that the iterator is made, and
# 5 batches of 1 have been read before the first is taken, 6 after it; with use_buffer_reader=False 4 and 5.
#
# Source: _DataLoaderIterSingleProcess in paddle/io/dataloader/dataloader_iter.py starts threading.Thread(target=
# self._thread_loop), which fills a blocking queue of prefetch_factor x the number of places. DataLoader's documentation
# has "0 for no subprocess used and loading data in main process", and prefetching "if use_buffer_reader=True".
#
# Output seen (the same with both versions):
#   paddle 2.6.2: read before the first batch is taken 5, after it 6; in the main thread: none
#     use_buffer_reader=False: 4, 5; in the main thread: none
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import sys
import threading
import time

import numpy
import paddle

paddle.set_device("cpu")


class Rows(paddle.io.Dataset):
    def __init__(self):
        self.threads = []  # in which each row was read

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self.threads.append(threading.current_thread())
        return numpy.float32(index)


def counts(**options):
    """How many rows are read before the first batch is taken, and after it; how many by the main thread."""
    rows, found = Rows(), []
    iterator = iter(paddle.io.DataLoader(rows, batch_size=1, num_workers=0, **options))
    for _ in range(2):
        found.append(-1)
        while found[-1] != len(rows.threads):  # until the thread has read nothing for two seconds
            found[-1] = len(rows.threads)
            time.sleep(2)
        next(iterator)
    return found, rows.threads[: found[1]].count(threading.main_thread()) or "none"


(before, after), by_main = counts()
(before_too, after_too), by_main_too = counts(use_buffer_reader=False)
print(
    f"paddle {paddle.__version__}: read before the first batch is taken {before}, after it {after}; "
    f"in the main thread: {by_main}"
)
print(f"  use_buffer_reader=False: {before_too}, {after_too}; in the main thread: {by_main_too}")
sys.exit((before, after, by_main, before_too, after_too, by_main_too) != (5, 6, "none", 4, 5, "none"))
PYTHON

for version in 2.6.2 3.3.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --quiet --disable-pip-version-check \
        "paddlepaddle==$version" numpy==2.3.5 setuptools==75.8.0
    "$folder/$version/bin/python" -W ignore "$folder/check.py"
done
