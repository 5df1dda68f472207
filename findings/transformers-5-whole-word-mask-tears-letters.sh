#!/usr/bin/env bash
# transformers 5.23.0: whole_word_mask=True tears letters apart, and joins lines or whole rows
#
# Versions: transformers 5.23.0, tokenizers 0.23.3, numpy 2.3.5.
#
# Guess: DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True), which no longer is for BERT alone, masks
# those tokens of a RoBERTa together that make up a word, as white space or a fast tokenizer's word_ids() tells. And it
# pads rows of different lengths, as without whole words.
#
# Behaviour: a letter of two bytes ends one word and begins the next, so half of "ï" stays visible and gives the other
# half away; so it must be with each letter of Chinese or Japanese that takes several tokens. A line end joins the words
# on both sides of it. With trim_offsets=False a row in English is one word: most rows have no label, the others nothing
# but labels. Rows of different lengths raise IndexError (with return_tensors="np", as here).
#
# Source: DataCollatorForLanguageModeling._calc_word_ids_and_prob_mask() in transformers/data/data_collator.py begins a
# word where a token does not start at the character at which the last one ended. Bytes of one letter all have that
# letter's offsets, so each starts before the last one's end. Trimming takes spaces off, not line ends. And
# tokenizer.pad() does not pad "offset_mapping", which the collator needs. Pull request 39485 brought it in.
#
# Output seen (what is masked together in 1,000 copies of a text; there is a line end before "sat"):
#   "the naïve cat", "sat": by word_ids() the|Ġna Ã ¯ ve|Ġcat|Ċ|sat, by the collator the|Ġna Ã|¯ ve|Ġcat Ċ sat
#   "the cat", "sat", trim_offsets=False: by word_ids() the|Ġcat|Ċ|sat, by the collator the Ġcat Ċ sat
#   the same with mlm_probability=0.15: rows without a label 85 %, with all tokens masked 15 %
#   two rows of different lengths: by whole words IndexError, by tokens (2, 6)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3 numpy==2.3.5

cat > "$folder/check.py" <<'PYTHON'
import sys
import warnings
from itertools import groupby

import numpy as np
from tokenizers import pre_tokenizers
from transformers import DataCollatorForLanguageModeling, RobertaTokenizer

warnings.simplefilter("ignore")  # that whole words are never replaced by random ones
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MERGES = [("t", "h"), ("th", "e"), ("a", "t"), ("c", "at"), ("Ġ", "cat"), ("s", "at"), ("v", "e"), ("n", "a")]
MERGES += [("Ġ", "na")]
TEXT, COPIES = "the cat\nsat", 1_000
tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, MERGES)]


def tokenizer_with(trim_offsets):
    return RobertaTokenizer({token: i for i, token in enumerate(tokens)}, MERGES, trim_offsets=trim_offsets)


def is_masked(tokenizer, texts, probability, whole_words=True):
    """Where the collator has labels."""
    encoded = tokenizer(texts, return_offsets_mapping=whole_words, return_special_tokens_mask=True)
    rows = [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]
    collator = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=whole_words, mlm_probability=probability, return_tensors="np", seed=0
    )
    return collator(rows)["labels"] != -100


def joined(pieces, keys):
    """The pieces, with a bar wherever the key changes."""
    groups = groupby(zip(pieces, keys), key=lambda pair: pair[1])
    return "|".join(" ".join(piece for piece, _ in group) for _, group in groups)


def words(tokenizer, text):
    """The words by word_ids(), and what the collator masks together, without <s> and </s>."""
    encoded = tokenizer(text)
    masked = is_masked(tokenizer, [text] * COPIES, 0.5).T.tolist()
    return [joined(encoded.tokens()[1:-1], keys[1:-1]) for keys in (encoded.word_ids(), masked)]


trimmed, untrimmed = map(tokenizer_with, (True, False))
letters, lines = words(trimmed, "the naïve cat\nsat"), words(untrimmed, TEXT)
shares = is_masked(untrimmed, [TEXT] * COPIES, 0.15)[:, 1:-1].mean(1)
none, all_of_it = (round(100 * float(np.mean(shares == share))) for share in (0, 1))
try:
    by_words = is_masked(trimmed, [TEXT, "cat"], 0.15).shape
except Exception as error:
    by_words = type(error).__name__
by_tokens = is_masked(trimmed, [TEXT, "cat"], 0.15, whole_words=False).shape

print('"the naïve cat", "sat": by word_ids() {}, by the collator {}'.format(*letters))
print('"the cat", "sat", trim_offsets=False: by word_ids() {}, by the collator {}'.format(*lines))
print(f"the same with mlm_probability=0.15: rows without a label {none} %, with all tokens masked {all_of_it} %")
print(f"two rows of different lengths: by whole words {by_words}, by tokens {by_tokens}")
passed = letters == ["the|Ġna Ã ¯ ve|Ġcat|Ċ|sat", "the|Ġna Ã|¯ ve|Ġcat Ċ sat"]
passed &= lines == ["the|Ġcat|Ċ|sat", "the Ġcat Ċ sat"]
passed &= none + all_of_it == 100 and 80 < none < 90
passed &= (by_words, by_tokens) == ("IndexError", (2, 6))
sys.exit(not passed)
PYTHON
"$folder/venv/bin/python" "$folder/check.py"
