#!/usr/bin/env bash
# tokenizers 0.23.3: a <mask> that is added before the training has the id of <s>, and another one in the saved file
#
# Versions: tokenizers 0.23.3.
#
# Guess: the special tokens of a trainer have the ids 0, 1, 2, ... in their order, whatever was added before. (To add
# <mask> first is a natural way to say that it takes the space before it, which the trainer's list of strings cannot.)
#
# Behaviour: added before the training, <mask> is 0 in the object that was trained, as <s> is, and the object encodes it
# so. The file that the object saves has 4. So a model that is pretrained by the object has <s> for its mask; whoever
# loads the file fills masks with an id that was never trained; and what the object encoded, the file reads as another
# text. Added after the training, all is right. Nothing is said either way.
#
# Source: AddedVocabulary::add_tokens() in tokenizers/src/tokenizer/added_vocabulary.rs gives a token that the model
# does not know yet the next id, which is 0 before training; train() changes the model alone.
#
# Output seen:
#   after: <mask> is 4 by the object, 4 by its file, which reads "a<mask>b" as "a<mask>b"; before: <mask> is 0 by the object, 4 by its file, which reads "a<mask>b" as "a<s>b"
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check tokenizers==0.23.3

cat > "$folder/check.py" <<'PYTHON'
import sys

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def trained(is_added_before):
    """A tokenizer that is told before or after the training that <mask> takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    trainer = trainers.BpeTrainer(vocab_size=20, special_tokens=SPECIAL, show_progress=False)
    if is_added_before:
        tokenizer.add_special_tokens([mask])
    tokenizer.train_from_iterator(["abcd abcd"], trainer)
    if not is_added_before:
        tokenizer.add_special_tokens([mask])
    return tokenizer


found, lines = [], []
for name, is_added_before in (("after", False), ("before", True)):
    tokenizer = trained(is_added_before)
    saved = Tokenizer.from_str(tokenizer.to_str())
    masks = [each.token_to_id("<mask>") for each in (tokenizer, saved)]
    read_back = saved.decode(tokenizer.encode("a<mask>b").ids, skip_special_tokens=False).replace(" ", "")
    by = f"<mask> is {masks[0]} by the object, {masks[1]} by its file"
    lines.append(f'{name}: {by}, which reads "a<mask>b" as "{read_back}"')
    found.append((masks, read_back))
print("; ".join(lines))
sys.exit(found != [([4, 4], "a<mask>b"), ([0, 4], "a<s>b")])
PYTHON
"$folder/venv/bin/python" "$folder/check.py"
