#!/usr/bin/env bash
# transformers 5.23.0: of a RoBERTa in vocab.json and merges.txt, <mask> no longer takes the space before it
#
# Versions: transformers 5.23.0 with tokenizers 0.23.3, and 4.57.6 with 0.22.2 to compare; numpy 2.3.5.
#
# Guess: "the <mask> sat" has three tokens, as in pretraining, where <mask> is in the place of a token as "Ġcat", and as
# in 4.57.6, whose source says "Mask token behave like a normal word, i.e. include the space before it".
#
# Behaviour: 5.23.0 has a token "Ġ" before <mask>, which a model hardly ever saw there in pretraining; there is no
# error. It is so where a folder has no tokenizer.json, as from save_model() of tokenizers, and also with "mask_token":
# "<mask>" in tokenizer_config.json. save_pretrained() then writes a tokenizer.json in which <mask> has lstrip false, so
# others that read it have the extra token, too. With lstrip in tokenizer_config.json, or in a tokenizer.json, it is
# right. By hand, the same was seen of BART, Longformer and LED, which share the class.
#
# Source: RobertaTokenizer.__init__() in transformers/models/roberta/tokenization_roberta.py hands the string mask_token
# on. In 4.57.6, RobertaTokenizerFast made it an AddedToken with lstrip=True; 5.23.0's CamembertTokenizer still does.
#
# Output seen:
#   transformers 4.57.6, mask_token not given: ['the', '<mask>', 'Ġsat'], saved with lstrip True
#   transformers 4.57.6, mask_token a string: ['the', '<mask>', 'Ġsat'], saved with lstrip True
#   transformers 4.57.6, mask_token with lstrip: ['the', '<mask>', 'Ġsat'], saved with lstrip True
#   transformers 5.23.0, mask_token not given: ['the', 'Ġ', '<mask>', 'Ġsat'], saved with lstrip False
#   transformers 5.23.0, mask_token a string: ['the', 'Ġ', '<mask>', 'Ġsat'], saved with lstrip False
#   transformers 5.23.0, mask_token with lstrip: ['the', '<mask>', 'Ġsat'], saved with lstrip True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # what is loaded is on this disk
import transformers
from tokenizers import pre_tokenizers

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MERGES = ["t h", "th e", "Ġ s", "a t", "Ġs at"]
AS_OBJECT = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False}
AS_OBJECT |= {"single_word": False, "normalized": False}
CASES = {
    "not given": {},
    "a string": {"mask_token": "<mask>"},
    "with lstrip": {"mask_token": AS_OBJECT},
}


def save_tokenizer(folder, settings):
    """RoBERTa's files of old: no tokenizer.json."""
    os.makedirs(folder)
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    with open(f"{folder}/vocab.json", "w") as file:
        json.dump({token: number for number, token in enumerate(tokens)}, file)
    with open(f"{folder}/merges.txt", "w") as file:
        file.write("\n".join(["#version: 0.2", *MERGES, ""]))
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump({"tokenizer_class": "RobertaTokenizer"} | settings, file)
    with open(f"{folder}/config.json", "w") as file:
        json.dump({"model_type": "roberta"}, file)


version, passed = transformers.__version__, True
for name, settings in CASES.items():
    folder = f"{sys.argv[1]}/{version} {name}"
    save_tokenizer(folder, settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the <mask> sat", add_special_tokens=False)["input_ids"])
    tokenizer.save_pretrained(f"{folder}/again")
    with open(f"{folder}/again/tokenizer.json") as file:
        [lstrip] = [token["lstrip"] for token in json.load(file)["added_tokens"] if token["content"] == "<mask>"]
    print(f"transformers {version}, mask_token {name}: {tokens}, saved with lstrip {lstrip}")
    changed = version == "5.23.0" and name != "with lstrip"
    passed &= tokens == (["the", "Ġ", "<mask>", "Ġsat"] if changed else ["the", "<mask>", "Ġsat"])
    passed &= lstrip != changed
sys.exit(not passed)
PYTHON

for versions in "transformers==4.57.6 tokenizers==0.22.2" "transformers==5.23.0 tokenizers==0.23.3"; do
    venv=$(mktemp -d -p "$folder")
    python3 -m venv "$venv"
    # shellcheck disable=SC2086  # two packages
    "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check $versions numpy==2.3.5
    "$venv/bin/python" "$folder/check.py" "$folder"
done
