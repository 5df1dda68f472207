#!/usr/bin/env bash
# PaddleNLP 2.8.1: Taskflow("fill_mask") of a RoBERTa gives back sentences that still hold <mask>
#
# Versions: paddlenlp 2.8.1, paddlepaddle 3.3.1, numpy 2.3.5, datasets 4.8.5, huggingface_hub 0.36.2, aistudio-sdk
# 0.2.6.
#
# Guess: "sequence" is the sentence with the predicted token in the place of the mask, as in transformers' fill-mask
# pipeline, whose interface it follows by a comment in its source.
#
# Behaviour: it is the sentence that was given, <mask> and all, for each of the predictions. The predictions themselves
# ("token", "token_str", "score") are right. With a BERT, whose mask is written [MASK], the sentence is filled in.
#
# Source: FillMaskTask._postprocess() in paddlenlp/taskflow/fill_mask.py replaces the string "[MASK]"; the tokenizer's
# mask_token is not asked there, though _preprocess() counts mask_token_id.
#
# Output seen (a model of one layer with random weights and a vocabulary of bytes):
#   sequences: ['a<mask>c', 'a<mask>c']; as many tokens predicted as asked for: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    paddlenlp==2.8.1 paddlepaddle==3.3.1 numpy==2.3.5 datasets==4.8.5 huggingface_hub==0.36.2 aistudio-sdk==0.2.6 \
    setuptools==75.8.0

cat > "$folder/check.py" <<'PYTHON'
import json
import os
import sys

from paddlenlp import Taskflow
from paddlenlp.transformers import RobertaConfig, RobertaForMaskedLM

folder = f"{sys.argv[1]}/model"
os.makedirs(folder)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
with open(f"{folder}/vocab.json", "w") as file:
    json.dump({token: i for i, token in enumerate([*SPECIAL, *"abcdefgh"])}, file)
with open(f"{folder}/merges.txt", "w") as file:
    file.write("#version: 0.2\n")
with open(f"{folder}/tokenizer_config.json", "w") as file:
    json.dump({"tokenizer_class": "RobertaBPETokenizer"}, file)
config = RobertaConfig(
    vocab_size=len(SPECIAL) + 8,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
    pad_token_id=1,
)
RobertaForMaskedLM(config).save_pretrained(folder)
predictions = Taskflow("fill_mask", task_path=folder, top_k=2)("a<mask>c")[0]
sequences = [prediction["sequence"] for prediction in predictions]
are_two = len({prediction["token"] for prediction in predictions}) == 2
print(f"sequences: {sequences}; as many tokens predicted as asked for: {are_two}")
sys.exit(not (sequences == ["a<mask>c"] * 2 and are_two))
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/check.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
