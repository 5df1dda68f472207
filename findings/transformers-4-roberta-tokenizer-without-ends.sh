#!/usr/bin/env bash
# transformers 4.57.6: RobertaTokenizerFast adds no <s> and </s> where tokenizer.json adds none; 5.23.0 does
#
# Versions: transformers 4.57.6 with tokenizers 0.22.2, and 5.23.0 with 0.23.3 to compare; numpy 2.3.5.
#
# Guess: RobertaTokenizerFast puts <s> and </s> around a text, as its documentation says of the class ("single
# sequence: <s> X </s>"), whichever tokenizer.json it is given.
#
# Behaviour: in 4.57.6 the ends are those of tokenizer.json's post-processor. A tokenizer trained in the way that
# tutorials of MLM pretraining show, ByteLevelBPETokenizer().train_from_iterator(...) and save("tokenizer.json"), has a
# post-processor that adds none, and so the model is pretrained and fine-tuned without <s>, whose hidden state a
# classifier reads. No warning tells. With 5.23.0 the same directory gives both, so a model that was trained with one
# version gets other rows in the other. Where the vocabulary is given as vocab.json and merges.txt, both add them.
#
# Source: ByteLevelBPETokenizer in tokenizers/implementations/byte_level_bpe.py sets processors.ByteLevel;
# RobertaTokenizerFast.__init__() in transformers 4's models/roberta/tokenization_roberta_fast.py changes only
# add_prefix_space and trim_offsets of the post-processor that is there; RobertaTokenizer.__init__() in 5's
# models/roberta/tokenization_roberta.py sets processors.RobertaProcessing.
#
# Output seen:
#   transformers 4.57.6, tokenizer.json: ['a', 'Ġcat']
#   transformers 4.57.6, vocab.json and merges.txt: ['<s>', 'a', 'Ġcat', '</s>']
#   transformers 5.23.0, tokenizer.json: ['<s>', 'a', 'Ġcat', '</s>']
#   transformers 5.23.0, vocab.json and merges.txt: ['<s>', 'a', 'Ġcat', '</s>']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # what is loaded is on this disk
import transformers
from tokenizers.implementations import ByteLevelBPETokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

parent = os.path.join(sys.argv[1], transformers.__version__)
trained = ByteLevelBPETokenizer()
trained.train_from_iterator(["a cat and a hat"] * 10, vocab_size=280, min_frequency=1, special_tokens=SPECIAL)
for name in ("tokenizer.json", "vocab.json and merges.txt"):
    os.makedirs(f"{parent}/{name}")
    if name == "tokenizer.json":
        trained.save(f"{parent}/{name}/tokenizer.json")
    else:
        trained.save_model(f"{parent}/{name}")
    with open(f"{parent}/{name}/config.json", "w") as file:
        json.dump({"model_type": "roberta"}, file)

found = {}
for name in sorted(os.listdir(parent)):
    loaded = transformers.RobertaTokenizerFast.from_pretrained(f"{parent}/{name}")
    ids = loaded("a cat")["input_ids"]
    found[name] = [ids[0] == loaded.cls_token_id, ids[-1] == loaded.sep_token_id]
    told = loaded.convert_ids_to_tokens(ids)
    print(f"transformers {transformers.__version__}, {name}: {told}")
adds_ends = transformers.__version__ == "5.23.0"
sys.exit(found != {"tokenizer.json": [adds_ends] * 2, "vocab.json and merges.txt": [True, True]})
PYTHON

for versions in "transformers==4.57.6 tokenizers==0.22.2" "transformers==5.23.0 tokenizers==0.23.3"; do
    venv=$(mktemp -d -p "$folder")
    python3 -m venv "$venv"
    # shellcheck disable=SC2086  # two packages
    "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check $versions numpy==2.3.5
    "$venv/bin/python" "$folder/check.py" "$folder"
done
