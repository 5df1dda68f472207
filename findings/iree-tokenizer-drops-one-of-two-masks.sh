#!/usr/bin/env bash
# iree-tokenizer 0.3.0: of two special tokens that follow each other behind a text, one is lost
#
# Versions: iree-tokenizer 0.3.0, tokenizers 0.23.3, numpy 2.3.5.
#
# Guess: Tokenizer.from_file(tokenizer.json) gives as many <mask> as a text has. Its page says "full HuggingFace
# tokenizer.json [...] compatibility" and "Drop-in compatible".
#
# Behaviour: "a <mask> <mask> b" has one <mask>, and "a</s></s>b", RobertaProcessing's way to join a pair, one </s>. No
# error; whoever fills masks by their order fills the wrong ones. At the beginning of a text both are there, and where a
# letter stands between them. And <mask>, which by lstrip takes white space before it, leaves a no-break space there.
#
# Source: pull request 23852 of iree-org/iree (March 2026), "Fix deferred emission dropping back-to-back special
# tokens": a second match overwrites pending_special_token, of which there is one, before it was given out.
# 0.3.0, the newest release when this was written, does not have it.
#
# Output seen:
#   'a <mask> <mask> b': tokenizers a <mask> <mask> Ġ b, iree a <mask> Ġ b
#   'a <mask> <mask> <mask> b': tokenizers a <mask> <mask> <mask> Ġ b, iree a <mask> <mask> Ġ b
#   'a</s></s>b': tokenizers a </s> </s> b, iree a </s> b
#   '<mask> <mask> b': tokenizers <mask> <mask> Ġ b, iree <mask> <mask> Ġ b
#   'a <mask> b <mask>': tokenizers a <mask> Ġ b <mask>, iree a <mask> Ġ b <mask>
#   'a\xa0<mask>': tokenizers a <mask>, iree a Â ł <mask>
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    iree-tokenizer==0.3.0 tokenizers==0.23.3 numpy==2.3.5

cat > "$folder/check.py" <<'PYTHON'
import sys

import iree.tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SEEN = {
    "a <mask> <mask> b": "a <mask> Ġ b",
    "a <mask> <mask> <mask> b": "a <mask> <mask> Ġ b",
    "a</s></s>b": "a </s> b",
    "<mask> <mask> b": "<mask> <mask> Ġ b",
    "a <mask> b <mask>": "a <mask> Ġ b <mask>",
    "a\u00a0<mask>": "a Â ł <mask>",
}
IS_RIGHT = [False, False, False, True, True, False]

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters, "th", "the"])}
tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([*SPECIAL[:4], AddedToken("<mask>", lstrip=True)])
path = f"{sys.argv[1]}/tokenizer.json"
tokenizer.save(path)
reader = iree.tokenizer.Tokenizer.from_file(path)
found, is_right = {}, []
for text in SEEN:
    ids = tokenizer.encode(text).ids, reader.encode(text)
    expected, found[text] = (" ".join(map(tokenizer.id_to_token, each)) for each in ids)
    is_right.append(found[text] == expected)
    print(f"{text!r}: tokenizers {expected}, iree {found[text]}")
sys.exit(found != SEEN or is_right != IS_RIGHT)
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder"
