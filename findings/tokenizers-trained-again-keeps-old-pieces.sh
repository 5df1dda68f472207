#!/usr/bin/env bash
# tokenizers 0.23.3: a BPE tokenizer that is trained again splits the words it has seen by its old merges
#
# Versions: tokenizers 0.23.3.
#
# Guess: after train_from_iterator(), encode() goes by the new vocabulary and merges, whatever was encoded before. So
# one Tokenizer may be trained with a vocabulary of one size after the other, and be asked each time how many tokens a
# held-out text has. Unigram and WordPiece do it so.
#
# Behaviour: words that were encoded before the second training keep the pieces, and the ids, of the first. The text
# that was measured before has as many tokens as before, so a larger vocabulary seems to gain nothing. Where the order
# of the special tokens or of letters changes, the old ids are those of other tokens: below, "cab" is read back as "ba".
# The file that the same object saves is right, so a corpus encoded by the object does not fit the file. Nothing is
# said. With tokenizer.model._clear_cache(), it is right.
#
# Source: BPE in tokenizers/src/models/bpe/model.rs keeps the pieces of each word in a cache, which BpeTrainer.train()
# leaves as it is while it sets vocabulary and merges. Two methods of the Python class, _clear_cache() and
# _resize_cache(), are there for it, without documentation.
#
# Output seen (tokens of "the cat sat on the mat"; object: the tokenizer that was trained; file: what it saves, read):
#   BPE, a vocabulary of 262: object 13, file 13
#   BPE, a vocabulary of 300: object 13, file 6
#   BPE, after _clear_cache(): object 6, file 6
#   Unigram, a vocabulary of 262: object 12, file 12
#   Unigram, a vocabulary of 300: object 11, file 11
#   trained with one more special token: "cab" is read back as "ba", by the file as "cab"
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check tokenizers==0.23.3

cat > "$folder/check.py" <<'PYTHON'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
CORPUS = 5 * ["the cat sat on the mat and the cat ran to the other mats"]
CORPUS += 3 * ["a different story of pretraining tokenizers"]
TEXT = "the cat sat on the mat"


def new(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def lengths(name, tokenizer):
    """How many tokens the text has by the tokenizer, and by the file that it saves."""
    path = f"{sys.argv[1]}/tokenizer.json"
    tokenizer.save(path)
    found = [len(each.encode(TEXT)) for each in (tokenizer, Tokenizer.from_file(path))]
    print("{}: object {}, file {}".format(name, *found))
    return found


passed = True
for model, trainer, expected in (
    (models.BPE, trainers.BpeTrainer, ([13, 13], [13, 6])),
    (models.Unigram, trainers.UnigramTrainer, ([12, 12], [11, 11])),
):
    tokenizer = new(model())
    for size, seen in zip((262, 300), expected):
        options = {"vocab_size": size, "initial_alphabet": ALPHABET, "special_tokens": ["<unk>"]}
        tokenizer.train_from_iterator(CORPUS, trainer(**options, show_progress=False))
        passed &= lengths(f"{model.__name__}, a vocabulary of {size}", tokenizer) == seen
    if model is models.BPE:
        tokenizer.model._clear_cache()
        passed &= lengths("BPE, after _clear_cache()", tokenizer) == [6, 6]

tokenizer = new(models.BPE())
for special in (["<pad>"], ["<pad>", "<mask>"]):
    trainer = trainers.BpeTrainer(vocab_size=len(special) + 4, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["abcd"], trainer)
    ids = tokenizer.encode("cab").ids
read_back = [tokenizer.decode(ids), tokenizer.decode(Tokenizer.from_str(tokenizer.to_str()).encode("cab").ids)]
print('trained with one more special token: "cab" is read back as "{}", by the file as "{}"'.format(*read_back))
passed &= read_back == ["ba", "cab"]
sys.exit(not passed)
PYTHON
TOKENIZERS_PARALLELISM=false "$folder/venv/bin/python" "$folder/check.py" "$folder"
