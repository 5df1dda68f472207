#!/usr/bin/env bash
# transformers 5.23.0: RobertaTokenizer drops the normalizer and the pre-tokenizer of tokenizer.json without a word
#
# Versions: transformers 5.23.0 with tokenizers 0.23.3, and 4.57.6 with 0.22.2 to compare; numpy 2.3.5.
#
# Guess: a folder with a tokenizer.json gives the tokens that this file says, whichever class loads it; the class adds
# names of special tokens and methods. So it is in 4.57.6.
#
# Behaviour: 5.23.0 takes vocabulary and merges from tokenizer.json, and splits text in its own way: no normalizer, and
# GPT-2's pre-tokenizer. A RoBERTa pretrained in lower case, or with numbers split into digits, gets
# other tokens than in pretraining, and no warning tells. It happens with AutoTokenizer, too, where
# tokenizer_config.json names RobertaTokenizer or RobertaTokenizerFast, or where it names no class and config.json
# says "roberta". With PreTrainedTokenizerFast, the file is taken as it is.
#
# Source: TokenizersBackend.convert_to_native_format() in transformers/tokenization_utils_tokenizers.py. Its comment
# says "we extract vocab/merges and pass decoder/pre_tokenizer/post_processor from the file so the reconstructed
# tokenizer matches the tokenizer.json", but for a class with an __init__() of its own it passes on neither
# normalizer nor pre_tokenizer; and RobertaTokenizer.__init__() in transformers/models/roberta/tokenization_roberta.py
# sets pre_tokenizers.ByteLevel, and no normalizer.
#
# Output seen (the text is "CAT27"; the file puts it in lower case and splits digits; "cat" and "27" are tokens):
#   transformers 4.57.6, tokenizer_class RobertaTokenizer: file ['cat', '2', '7'], loaded ['cat', '2', '7']
#   (and so with RobertaTokenizerFast, None and PreTrainedTokenizerFast)
#   transformers 5.23.0, tokenizer_class RobertaTokenizer: file ['cat', '2', '7'], loaded ['C', 'A', 'T', '27']
#   transformers 5.23.0, tokenizer_class RobertaTokenizerFast: file ['cat', '2', '7'], loaded ['C', 'A', 'T', '27']
#   transformers 5.23.0, tokenizer_class None: file ['cat', '2', '7'], loaded ['C', 'A', 'T', '27']
#   transformers 5.23.0, tokenizer_class PreTrainedTokenizerFast: file ['cat', '2', '7'], loaded ['cat', '2', '7']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # what is loaded is on this disk
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEXT = "CAT27"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def save_tokenizer(folder, tokenizer_class):
    """A byte-level BPE of RoBERTa's kind that lower-cases and splits numbers into digits."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters, "ca", "cat", "27"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("c", "a"), ("ca", "t"), ("2", "7")]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL)
    os.makedirs(folder)
    tokenizer.save(f"{folder}/tokenizer.json")
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    if tokenizer_class is not None:
        names["tokenizer_class"] = tokenizer_class
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump(names, file)
    with open(f"{folder}/config.json", "w") as file:
        json.dump({"model_type": "roberta"}, file)
    return tokenizer.encode(TEXT, add_special_tokens=False).tokens


parent, as_in_file, changed = sys.argv[1], ["cat", "2", "7"], ["C", "A", "T", "27"]
is_version_5 = transformers.__version__ == "5.23.0"
passed = True
for name in ("RobertaTokenizer", "RobertaTokenizerFast", None, "PreTrainedTokenizerFast"):
    folder = f"{parent}/{transformers.__version__}-{name}"
    from_file = save_tokenizer(folder, name)
    loaded = transformers.AutoTokenizer.from_pretrained(folder).tokenize(TEXT)
    print(f"transformers {transformers.__version__}, tokenizer_class {name}: file {from_file}, loaded {loaded}")
    passed &= from_file == as_in_file
    passed &= loaded == (changed if is_version_5 and name != "PreTrainedTokenizerFast" else as_in_file)
sys.exit(not passed)
PYTHON

for versions in "transformers==4.57.6 tokenizers==0.22.2" "transformers==5.23.0 tokenizers==0.23.3"; do
    venv=$(mktemp -d -p "$folder")
    python3 -m venv "$venv"
    # shellcheck disable=SC2086  # two packages
    "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check $versions numpy==2.3.5
    "$venv/bin/python" "$folder/check.py" "$folder"
done
