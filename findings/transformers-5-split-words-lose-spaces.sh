#!/usr/bin/env bash
# transformers 5.23.0: words that come split lose the space before them, and add_prefix_space=True may change nothing
#
# Versions: transformers 5.23.0 with tokenizers 0.23.3, and 4.57.6 with 0.22.2 to compare; numpy 2.3.5.
#
# Guess: a byte-level tokenizer called as tokenizer(words, is_split_into_words=True), as for named entities, refuses it
# without add_prefix_space=True; with it, each word has the tokens that it has within a text. So it is in 4.57.6, with
# RobertaTokenizerFast, and with PreTrainedTokenizerFast where add_prefix_space=True is given.
#
# Behaviour: RobertaTokenizer no longer refuses. Without a warning, each word gets the tokens that it has at the
# beginning of a text, which often are smaller pieces. And PreTrainedTokenizerFast takes add_prefix_space=True, says so
# in its attribute, and does nothing with it: the same smaller pieces.
#
# Source: the documentation of RobertaTokenizer in transformers/models/roberta/tokenization_roberta.py still says "When
# used with `is_split_into_words=True`, this tokenizer needs to be instantiated with `add_prefix_space=True`"; the
# assertion of 4.57.6 (_batch_encode_plus() in tokenization_roberta_fast.py) is gone. TokenizersBackend.__init__() in
# transformers/tokenization_utils_tokenizers.py keeps add_prefix_space as an attribute and leaves the pre-tokenizer of
# tokenizer.json as it is; PreTrainedTokenizerFast.__init__() of 4.57.6 sets it there.
#
# Output seen:
#   transformers 4.57.6, text: ['the', 'Ġcat', 'Ġsat']
#   transformers 4.57.6, words: refused: You need to instantiate RobertaTokenizerFast with add_prefix_space=True to
#     use it with pretokenized inputs.
#   transformers 4.57.6, words, add_prefix_space=True: ['Ġ', 'the', 'Ġcat', 'Ġsat']
#   transformers 4.57.6, words, PreTrainedTokenizerFast, add_prefix_space=True: ['Ġ', 'the', 'Ġcat', 'Ġsat']
#   transformers 5.23.0, text: ['the', 'Ġcat', 'Ġsat']
#   transformers 5.23.0, words: ['the', 'c', 'at', 's', 'at']
#   transformers 5.23.0, words, add_prefix_space=True: ['Ġ', 'the', 'Ġcat', 'Ġsat']
#   transformers 5.23.0, words, PreTrainedTokenizerFast, add_prefix_space=True: ['the', 'c', 'at', 's', 'at']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/check.py" <<'PYTHON'
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # what is loaded is on this disk
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ["the", "cat", "sat"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MERGES = [("t", "h"), ("th", "e"), ("a", "t"), ("Ġ", "c"), ("Ġc", "at"), ("Ġ", "s"), ("Ġs", "at")]


def save_tokenizer(folder):
    """A byte-level BPE like RoBERTa's, which knows "the", "Ġcat" and "Ġsat"."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *letters, *(left + right for left, right in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL)
    os.makedirs(folder)
    tokenizer.save(f"{folder}/tokenizer.json")


def tokens_of(tokenizer, text_or_words):
    try:
        encoded = tokenizer(text_or_words, is_split_into_words=isinstance(text_or_words, list))
    except AssertionError as error:
        return f"refused: {error}"
    return [token for token in encoded.tokens() if token not in SPECIAL]


def load(tokenizer_class, **options):
    return tokenizer_class.from_pretrained(sys.argv[1], **options)


save_tokenizer(sys.argv[1])
roberta = load(transformers.RobertaTokenizerFast)
roberta_with_spaces = load(transformers.RobertaTokenizerFast, add_prefix_space=True)
generic_with_spaces = load(transformers.PreTrainedTokenizerFast, add_prefix_space=True)
seen = {
    "text": tokens_of(roberta, " ".join(WORDS)),
    "words": tokens_of(roberta, WORDS),
    "words, add_prefix_space=True": tokens_of(roberta_with_spaces, WORDS),
    "words, PreTrainedTokenizerFast, add_prefix_space=True": tokens_of(generic_with_spaces, WORDS),
}
for what, tokens in seen.items():
    print(f"transformers {transformers.__version__}, {what}: {tokens}")
with_spaces, without = ["Ġ", "the", "Ġcat", "Ġsat"], ["the", "c", "at", "s", "at"]
text, words, words_with_spaces, words_of_generic = seen.values()
passed = text == ["the", "Ġcat", "Ġsat"] and words_with_spaces == with_spaces and generic_with_spaces.add_prefix_space
if transformers.__version__ == "5.23.0":
    passed &= words == without and words_of_generic == without
else:
    passed &= "refused" in words and words_of_generic == with_spaces
sys.exit(not passed)
PYTHON

for versions in "transformers==4.57.6 tokenizers==0.22.2" "transformers==5.23.0 tokenizers==0.23.3"; do
    venv=$(mktemp -d -p "$folder")
    python3 -m venv "$venv"
    # shellcheck disable=SC2086  # two packages
    "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check $versions numpy==2.3.5
    "$venv/bin/python" "$folder/check.py" "$venv/tokenizer"
done
