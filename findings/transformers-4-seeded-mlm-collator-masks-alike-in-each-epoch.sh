#!/usr/bin/env bash
# transformers 4.57.6: DataCollatorForLanguageModeling(seed=42) with workers masks the same places in every epoch
#
# Versions: transformers 4.57.6, torch 2.13.0, numpy 2.3.5. On a CPU.
#
# Guess: a seed makes a run repeatable, and masks stay new in each epoch, as they are with num_workers=0 and without a
# seed. A seed of 0 is one like any other.
#
# Behaviour: each epoch starts its workers anew (persistent_workers=False is the DataLoader's and the Trainer's
# default), and each makes its generator from the seed and its number. So each epoch has the masks of the first: on the
# same rows without shuffling, which is static masking, and at the same places of other rows with it.
# persistent_workers=True is right. A seed of 0 is none: two runs differ.
#
# Source: create_rng() and torch_call() in transformers/data/data_collator.py: the main process never makes the
# generator where there are workers, and `if self.seed and self.generator is None`.
#
# Output seen:
#   3 epochs mask the same places: no workers False, 2 workers True, 2 workers, shuffled True, 2 persistent workers False, 2 workers, no seed False; two runs do: seed 42 True, seed 0 False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    transformers==4.57.6 torch==2.13.0 numpy==2.3.5

cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

vocabulary = {token: i for i, token in enumerate(["<pad>", "<mask>", *"abcdefgh"])}
model = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", mask_token="<mask>")
ROWS = [{"input_ids": [2 + (row + i) % 8 for i in range(64)]} for row in range(32)]


def masks(seed, epochs, **options):
    """Where each epoch has labels."""
    collator = DataCollatorForLanguageModeling(tokenizer, seed=seed)
    loader = DataLoader(ROWS, batch_size=4, collate_fn=collator, **options)
    return [torch.cat([batch["labels"] != -100 for batch in loader]) for _ in range(epochs)]


def same(epochs):
    return all(torch.equal(epochs[0], epoch) for epoch in epochs)


found = {
    "no workers": same(masks(42, 3)),
    "2 workers": same(masks(42, 3, num_workers=2)),
    "2 workers, shuffled": same(masks(42, 3, num_workers=2, shuffle=True)),
    "2 persistent workers": same(masks(42, 3, num_workers=2, persistent_workers=True)),
    "2 workers, no seed": same(masks(None, 3, num_workers=2)),
}
runs = {f"seed {seed}": same([masks(seed, 1)[0] for _ in range(2)]) for seed in (42, 0)}
epochs, by_run = (", ".join(f"{name} {is_same}" for name, is_same in result.items()) for result in (found, runs))
print(f"3 epochs mask the same places: {epochs}; two runs do: {by_run}")
sys.exit([*found.values(), *runs.values()] != [False, True, True, False, False, True, False])
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py"
