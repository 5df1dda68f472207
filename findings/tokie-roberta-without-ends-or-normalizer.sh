#!/usr/bin/env bash
# tokie 0.1.4: of a RoBERTa's tokenizer.json it leaves out <s> and </s>, add_prefix_space and most normalizers
#
# Versions: tokie 0.1.4, tokenizers 0.23.3, numpy 2.3.5.
#
# Guess: tokie.Tokenizer.from_json() gives the ids that tokenizers gives, special tokens and normalizer too, or refuses
# a file that it cannot follow. Its page says "Drop-in replacement for HuggingFace tokenizers", "Works with any
# HuggingFace tokenizer" and "100% token-accurate across all models".
#
# Behaviour: with RobertaProcessing there is neither <s> nor </s>, in pairs or in single texts, though
# add_special_tokens=True. The same as a TemplateProcessing gives <s>, but no </s>. Lowercase takes accents off, too;
# Replace does nothing, of a Sequence of NFC and Lowercase the latter is not done, and add_prefix_space=True does
# nothing. No error tells. Plain text is right, so a look at some tokens may not show it.
#
# Source: detect_post_processor() in crates/tokie/src/hf.rs of chonkie-inc/tokie knows TemplateProcessing and
# Sequence, and takes all others for none; parse_template_post_processor() knows an end by the name "[SEP]" only.
# detect_normalizer() makes Lowercase Normalizer::BertUncased.
#
# Output seen (of the text "Café"; * where tokie is right):
#   RobertaProcessing: file <s> C a f Ã © </s>, tokie C a f Ã ©
#   RobertaProcessing, a pair: file <s> C a f Ã © </s> </s> f a </s>, tokie C a f Ã © f a
#   TemplateProcessing: file <s> C a f Ã © </s>, tokie <s> C a f Ã ©
#   Lowercase: file c a f Ã ©, tokie c a f e
#   NFC and Lowercase: file c a f Ã ©, tokie C a f Ã ©
#   Replace: file C o f Ã ©, tokie C a f Ã ©
#   add_prefix_space: file Ġ C a f Ã ©, tokie C a f Ã ©
#   none of these: file C a f Ã ©, tokie C a f Ã © *
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
    tokie==0.1.4 tokenizers==0.23.3 numpy==2.3.5

cat > "$folder/check.py" <<'PYTHON'
import sys

import tokie
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BOTH_ENDS = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
)
CASES = {  # the settings of a tokenizer; the texts
    "RobertaProcessing": ({"post_processor": BOTH_ENDS}, ["Café"]),
    "RobertaProcessing, a pair": ({"post_processor": BOTH_ENDS}, ["Café", "fa"]),
    "TemplateProcessing": ({"post_processor": TEMPLATE}, ["Café"]),
    "Lowercase": ({"normalizer": normalizers.Lowercase()}, ["Café"]),
    "NFC and Lowercase": ({"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])}, ["Café"]),
    "Replace": ({"normalizer": normalizers.Replace("a", "o")}, ["Café"]),
    "add_prefix_space": ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, ["Café"]),
    "none of these": ({}, ["Café"]),
}
SEEN = ["C a f Ã ©", "C a f Ã © f a", "<s> C a f Ã ©", "c a f e", *["C a f Ã ©"] * 4]

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters, "th", "the"])}
found = []
for number, (name, (settings, texts)) in enumerate(CASES.items()):
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for setting, value in settings.items():
        setattr(tokenizer, setting, value)
    tokenizer.add_special_tokens(SPECIAL)
    path = f"{sys.argv[1]}/{number}.json"
    tokenizer.save(path)
    expected = " ".join(tokenizer.encode(*texts).tokens)
    ids = tokie.Tokenizer.from_json(path)(*texts, add_special_tokens=True).ids
    found.append(" ".join(map(tokenizer.id_to_token, ids)))
    print(f"{name}: file {expected}, tokie {found[-1]}{' *' * (found[-1] == expected)}")
sys.exit(found != SEEN or found[-1] != expected)
PYTHON
"$folder/venv/bin/python" "$folder/check.py" "$folder"
