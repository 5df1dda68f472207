#!/usr/bin/env bash
# PaddleNLP 2.8.1: DistributedBatchSampler(shuffle=True) yields rows in order, and the same last batch on every rank
#
# Versions: paddlenlp 2.8.1, paddlepaddle 3.3.1, numpy 2.3.5, datasets 4.8.5, huggingface_hub 0.36.2, aistudio-sdk
# 0.2.6.
#
# Guess: as paddle.io.DistributedBatchSampler, whose name, arguments and documentation it has: rows are shuffled anew in
# each epoch, each rank has others, and no batch is larger than batch_size.
#
# Behaviour: shuffle is kept, and never looked at; each epoch has the data's order. What is left at the end goes whole
# to each rank, as a batch that is larger than asked for. (It can start at consumed_samples without reading the rows
# before, so people use it to resume long runs.)
#
# Source: DistributedBatchSampler.__iter__() in paddlenlp/utils/batch_sampler.py: nothing reads self.shuffle or
# self.epoch, and the last `yield batch_indices` is not cut to the rank's part.
#
# Output seen (22 rows, batches of 4, 2 ranks):
#   Paddle: in order False, epochs alike False, largest batch 4, rows of both ranks []; PaddleNLP: in order True, epochs alike True, largest batch 6, rows of both ranks [16, 17, 18, 19, 20, 21]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlenlp==2.8.1 paddlepaddle==3.3.1 numpy==2.3.5 datasets==4.8.5 huggingface_hub==0.36.2 aistudio-sdk==0.2.6 \
    setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import sys

import paddle
from paddlenlp.utils.batch_sampler import DistributedBatchSampler

ROWS, BATCH, RANKS = range(22), 4, 2


def batches(sampler_class):
    """The batches of two epochs, by rank."""
    found = []
    for rank in range(RANKS):
        sampler = sampler_class(ROWS, BATCH, num_replicas=RANKS, rank=rank, shuffle=True)
        found.append([])
        for epoch in range(2):
            sampler.set_epoch(epoch)
            found[-1].append([list(batch) for batch in sampler])
    return found


def facts(found):
    """Whether an epoch is in order, whether two are alike, the largest batch, and the rows that both ranks have."""
    is_in_order = all(sum(rank[0], []) == sorted(sum(rank[0], [])) for rank in found)
    seen = [set(sum(rank[0], [])) for rank in found]
    return is_in_order, found[0][0] == found[0][1], max(map(len, found[0][0])), sorted(seen[0] & seen[1])


results = facts(batches(paddle.io.DistributedBatchSampler)), facts(batches(DistributedBatchSampler))
shown = "{}: in order {}, epochs alike {}, largest batch {}, rows of both ranks {}"
print("; ".join(shown.format(name, *result) for name, result in zip(("Paddle", "PaddleNLP"), results)))
sys.exit(results != ((False, False, 4, []), (True, True, 6, [16, 17, 18, 19, 20, 21])))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
