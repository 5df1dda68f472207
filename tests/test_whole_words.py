"""Whole words: what people of each script call a word, chosen whole, and about as evenly as single tokens."""

import functools
import importlib.metadata
import json
import random
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from conftest import create, text_of_words

import run_pretrain
import utils
from utils import IGNORE_INDEX, DataCollatorMLM, UserError, WholeWords

# A sentence and its words: `|` sets apart what no space does.
SENTENCES = {
    "English": "Don't| stop| now|,| it's| 5| o’clock|!| The| e|-|mail| costs| $|3|.|",
    "German": "Die| Möwen| über| dem| Hafen| schreien| lauter| als| gestern|.|",
    "Russian": "Старый| маяк| стоит| на| берегу|,| и| чайки| кружат| над| ним|.|",
    "Ukrainian": "У| нашому| селі| п'ять| криниць|,| а| сім’я| живе| тут| давно|.|",
    "Greek": "Το| καράβι| φεύγει| αύριο|·| θα| γυρίσει| σε| τρεις| μέρες|.|",
    "Arabic": "يقرأ| الولد| كتابا| قديما| في| الحديقة|،| ثم| يعود| إلى| البيت|.|",
    "Hebrew": "הילדה| קוראת| ספר| ליד| החלון|,| והחתול| ישן|.|",
    "Hindi": "मेरी| दादी| हर| सुबह| बगीचे| में| पौधों| को| पानी| देती| हैं|।|",
    "Tamil": "என்| தம்பி| மழையில்| நனைந்து| வீட்டுக்கு| வந்தான்|.|",
    "Korean": "할머니는| 아침마다| 마당에서| 고양이에게| 밥을| 준다|.|",
    "Armenian": "Ծերունին| նստած| էր| պատուհանի| մոտ| և| նայում| էր| ծովին|։|",
}
WITHOUT_SPACES = {
    "Chinese": "北京|的|冬天|非常|寒冷|，|老师|很|高兴|。|",
    "Japanese": "彼女|は|毎朝|公園|を|走り|ます|。|",
    "Thai": "แม่|ไป|ตลาด|ซื้อ|ปลา|",
    "Lao": "ຂ້ອຍ|ໄປ|ໂຮງຮຽນ|ທຸກມື້|",
    "Khmer": "ខ្ញុំ|ទៅ|សាលារៀន|",
    "Burmese": "ကျွန်တော်|စာအုပ်|ဖတ်|နေ|တယ်|။|",
}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


class ByteLevel:
    """As transformers' fast tokenizers can be asked: a byte-level BPE of `tokenizers`."""

    def __init__(self, text: list, vocab_size: int = 0):
        self.pad_token_id, self.mask_token_id, self.all_special_ids = 1, 4, [0, 1, 2, 3, 4]
        self.backend_tokenizer = tokenizers.ByteLevelBPETokenizer()._tokenizer
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        options = dict(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet, special_tokens=SPECIAL)
        trainer = tokenizers.trainers.BpeTrainer(**options)
        self.backend_tokenizer.train_from_iterator(text, trainer)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def get_added_vocab(self) -> dict:
        return {token.content: i for i, token in self.backend_tokenizer.get_added_tokens_decoder().items()}

    @property
    def added_tokens_decoder(self) -> dict:
        return self.backend_tokenizer.get_added_tokens_decoder()

    def convert_ids_to_tokens(self, ids: list) -> list:
        return [self.backend_tokenizer.id_to_token(i) for i in ids]

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.backend_tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


@functools.cache
def bytes_alone() -> ByteLevel:
    """A tokenizer whose tokens are single bytes, so that no token joins two words."""
    return ByteLevel([], 0)


def words_of(tokenizer: ByteLevel, text: str, words: WholeWords | None = None) -> list:
    """The words that a text's tokens are grouped into."""
    words = words or WholeWords(tokenizer)
    ids = tokenizer.encode(text)
    pieces = np.split(ids, np.flatnonzero(words.begins(ids))[1:])
    return [b"".join(words.token_bytes[i] for i in piece).decode(errors="replace") for piece in pieces]


def expected_words(marked: str) -> list:
    return [word.strip() for word in marked.split("|") if word.strip()]


@pytest.mark.parametrize("language", [*SENTENCES, *WITHOUT_SPACES])
def test_words_are_what_readers_of_the_script_call_words(language, monkeypatch):
    if language in WITHOUT_SPACES:
        pytest.importorskip("icu4py")
    monkeypatch.setattr(utils, "LONGEST_WORD", 1000)  # these are counted in bytes
    marked = (SENTENCES | WITHOUT_SPACES)[language]
    found = words_of(bytes_alone(), marked.replace("|", ""))
    assert [word for word in found if not word.isspace()] == expected_words(marked)
    assert "".join(found) == marked.replace("|", "")


def test_white_space_of_any_kind_sets_words_apart():
    tokenizer = ByteLevel(["alpha beta gamma delta"] * 9, 300)
    spaces = " \t\n\r\v\f\u00a0\u2003\u2028\u3000\u200b"
    for space in spaces:
        found = words_of(tokenizer, f"alpha{space}beta{space}{space}gamma")
        assert [word.strip(spaces) for word in found if word.strip(spaces)] == ["alpha", "beta", "gamma"], repr(space)
    assert words_of(tokenizer, "alpha beta") == ["alpha", " beta"]  # a token holds its word's space
    assert words_of(tokenizer, "alpha\nbeta") == ["alpha", "\n", "beta"]


def test_runs_of_a_script_without_spaces_are_cut_each_for_itself():
    """The dictionary cuts 今天下 behind 今天, but 天下 is a word, too."""
    pytest.importorskip("icu4py")
    assert words_of(bytes_alone(), "今天下") == ["今天", "下"]
    assert words_of(bytes_alone(), "今 天下") == ["今", " ", "天下"]
    assert words_of(bytes_alone(), "ไปខ្ញុំ") == ["ไป", "ខ្ញុំ"]  # ICU alone joins Thai and Khmer


def test_plain_english_takes_the_fast_path(monkeypatch):
    monkeypatch.setattr(WholeWords, "begins_by_text", None)  # the slow one
    text = "They don't say it's late, do they? No: \"never\", 9 of 10 said."
    tokenizer = ByteLevel([text] * 9, 400)
    words = WholeWords(tokenizer)
    assert words.is_plain[tokenizer.encode(text)].all()
    assert words_of(tokenizer, text, words)[:5] == ["They", " don't", " say", " it's", " late"]


def test_marks_and_symbols_are_words_of_their_own_but_for_an_apostrophe_between_letters():
    tokenizer = bytes_alone()
    cases = {
        "don't": ["don't"], "l’an": ["l’an"], "'tis'": ["'", "tis", "'"], "a''b": ["a", "'", "'", "b"],
        "צה״ל": ["צה״ל"], "paral·lel": ["paral·lel"], "a-b_c": ["a", "-", "b", "_", "c"], "3.14": ["3", ".", "14"],
        "x+y=z": ["x", "+", "y", "=", "z"], "«да»": ["«", "да", "»"], "50€!": ["50", "€", "!"],
    }  # fmt: skip
    for text, expected in cases.items():
        assert words_of(tokenizer, text) == expected


def test_no_word_begins_inside_a_grapheme_cluster():
    tokenizer = bytes_alone()
    for cluster in (
        "e\u0301",
        "\U0001f469\U0001f3fd\u200d\U0001f52c",
        "\U0001f1e9\U0001f1ea",
        "1\ufe0f\u20e3",
        "क्षि",
        "ｶﾞ",
    ):
        assert words_of(tokenizer, f"({cluster})") == ["(", cluster, ")"]
    assert words_of(tokenizer, 'x"\u200d y') == ["x", '"\u200d', " ", "y"]  # the joiner joins emoji alone


def test_words_of_random_mixtures_join_to_the_text_and_cut_no_grapheme_cluster(monkeypatch):
    breakers = pytest.importorskip("icu4py.breakers")
    monkeypatch.setattr(utils, "LONGEST_WORD", 10**9)
    draw, tokenizer = random.Random(0), bytes_alone()
    words = WholeWords(tokenizer)
    alphabet = (
        "".join((SENTENCES | WITHOUT_SPACES).values()).replace("|", "") + "\u200d\u200c\u0301👩🏽🇩🇪🇫\ufe0f'’.…ｶﾞ々ー가"
    )
    inside = 0
    for _ in range(300):
        text = "".join(draw.choices(alphabet, k=60))
        found = words_of(tokenizer, text, words)
        assert "".join(found) == text
        ends = set(np.cumsum([len(word) for word in found]))
        clusters = set(np.cumsum([len(cluster) for cluster in breakers.CharacterBreaker(text, "en")]))
        assert ends <= clusters
        inside += len(text) - len(clusters)
    assert inside > 1000


def mixture(draw: random.Random, marked: dict, words: int) -> str:
    """Words of several languages, with other things between them than spaces alone."""
    choices = [word for sentence in marked.values() for word in sentence.split("|") if word]
    between = ["", "", "", " ", " ", "\n", ", ", "'", "’", '"', "1", "é", "👍🏽"]
    return "".join(word + draw.choice(between) for word in draw.choices(choices, k=words))


@pytest.mark.parametrize("marked", [SENTENCES, SENTENCES | WITHOUT_SPACES], ids=["spaces", "all"])
def test_words_are_the_same_with_any_tokenizer_but_for_those_that_a_token_joins(marked, monkeypatch):
    """By byte offsets: a word begins at a token exactly if the text has one there."""
    if marked is not SENTENCES:
        pytest.importorskip("icu4py")
    monkeypatch.setattr(utils, "LONGEST_WORD", 10**9)
    draw = random.Random(1)
    texts = [mixture(draw, marked, 40) for _ in range(300)]
    single = WholeWords(bytes_alone())
    tokenizer = ByteLevel(texts, 3000)
    words = WholeWords(tokenizer)
    joined = straddling = plain = 0
    for text in texts:
        at_byte = single.begins(bytes_alone().encode(text))
        assert len(at_byte) == len(text.encode())
        ids = tokenizer.encode(text)
        lengths = words.token_lengths[ids]
        starts = np.cumsum(lengths) - lengths
        assert np.array_equal(words.begins(ids), at_byte[starts])
        # The fast path is the slow one's equal where it is taken.
        plain += words.is_plain[ids].all()
        by_token, by_text = words.begins_by_token(ids), words.begins_by_text(ids)[0]
        of_plain = words.is_plain[ids] & np.append(True, words.is_plain[ids][:-1])
        of_plain[0] = False
        assert np.array_equal(by_token[of_plain], by_text[of_plain])
        straddling += sum(b" " in words.token_bytes[i][:1] and not words.is_plain[i] for i in ids)
        joined += at_byte.sum() - at_byte[starts].sum()
    assert joined > 100 and straddling > 100  # there are tokens of a space and a part of a letter, and of two words


# ---------------------------------------------------------------- how many are chosen


def rows_of(tokenizer: ByteLevel, text: str, most_rows: int) -> list:
    """Rows of 126 tokens between <s> and </s>, as create_data.py packs them."""
    ids = tokenizer.encode(text)
    num_rows = min(most_rows, len(ids) // 126)
    assert num_rows >= 100
    ends = np.zeros((num_rows, 1), dtype=np.int64)
    rows = np.hstack([ends, ids[: num_rows * 126].reshape(num_rows, 126), ends + 2])
    return [{"input_ids": ids, "epoch": 0, "row": row} for row, ids in enumerate(rows)]


def text_in(language: str) -> str:
    """Sentences of a language's words, long ones and short ones, in any order; without spaces, in phrases."""
    draw = random.Random(language)
    *words, end, _ = (SENTENCES | WITHOUT_SPACES)[language].split("|")
    between = ["", "", "", " "] if language in WITHOUT_SPACES else [""]

    def sentence() -> str:
        return "".join(word + draw.choice(between) for word in draw.choices(words, k=draw.randint(4, 30))) + end

    return "\n".join(sentence() for _ in range(1600))


CASES = {
    "one word a line": lambda: "\n".join(text_of_words(400).split()),
    "one long line of letters": lambda: "".join(random.Random(0).choices("ACGT", k=100_000)),
    **{language: functools.partial(text_in, language) for language in SENTENCES | WITHOUT_SPACES},
}


@pytest.mark.parametrize("case", CASES)
def test_rows_of_any_script_predict_what_single_tokens_would(case):
    """On 126 places at 15 % no row goes without, and the share varies about as that of single tokens."""
    if case in WITHOUT_SPACES:
        pytest.importorskip("icu4py")
    text = CASES[case]()
    # A vocabulary of the script's own; and nearly bytes, as another language's: a word has several times the tokens.
    for vocab_size, most in ((1000, 1.4), (290, 1.75)):
        tokenizer = ByteLevel(text[:10_000].splitlines(), vocab_size)
        examples = rows_of(tokenizer, text[:200_000], 180)
        single, whole = (DataCollatorMLM(tokenizer, whole_words=whole)(examples)["labels"] for whole in (False, True))
        shares, single_shares = ((labels != IGNORE_INDEX)[:, 1:-1].mean(axis=1) for labels in (whole, single))
        assert shares.min() > 0
        assert abs(shares.mean() - 0.15) < 0.012
        assert shares.std() < (1.75 if case == "one long line of letters" else most) * single_shares.std()
        assert utils.masking_problem(DataCollatorMLM(tokenizer, whole_words=True), Rows(examples)) is None


class Rows(list):
    """As TokenRows is asked: rows[epoch, i]."""

    def __getitem__(self, key: tuple) -> dict:
        return super().__getitem__(key[1])


def test_each_word_is_chosen_with_the_same_probability_whole_and_its_tokens_fates_are_drawn_apart():
    text = text_of_words(600)
    tokenizer = ByteLevel(text[:30_000].splitlines(), 400)
    examples = rows_of(tokenizer, text, 500)
    collator = DataCollatorMLM(tokenizer, seed=1, whole_words=True)
    batch = collator(examples)
    chosen, masked = batch["labels"] != IGNORE_INDEX, batch["input_ids"] == tokenizer.mask_token_id
    by_length = {}
    for row, example in enumerate(examples):
        begins = collator.words.begins(example["input_ids"])
        starts = np.flatnonzero(begins[1:-1]) + 1
        for start, end in zip(starts, np.append(starts[1:], 127)):
            assert chosen[row, start:end].all() or not chosen[row, start:end].any()
            by_length.setdefault(end - start, []).append(chosen[row, start])
    counts = {length: len(draws) for length, draws in by_length.items() if len(draws) > 1000}
    assert len(counts) >= 4 and max(counts) >= 4
    for length in counts:
        assert abs(np.mean(by_length[length]) - 0.15) < 4 * np.sqrt(0.15 * 0.85 / counts[length])
    # Within a word each token's fate is drawn for itself: neighbours are both masked at 80 % of 80 %.
    pairs = chosen[:, 1:] & chosen[:, :-1]
    assert pairs.sum() > 5_000 and abs((masked[:, 1:] & masked[:, :-1])[pairs].mean() - 0.8**2) < 0.02


def test_the_words_of_a_row_are_chosen_independently_of_where_they_stand_and_of_each_other():
    """Of 42 words of three tokens: each alike, and pairs as often as by chance (chi-square, 41 and 860 degrees)."""
    begins, special = np.arange(126) % 3 == 0, np.zeros(126, dtype=bool)
    generator = np.random.default_rng(0)
    draws = np.stack([utils.choose_words(begins, special, 0.15, generator)[::3] for _ in range(10_000)])
    expected = draws.mean() * len(draws)
    statistic = np.sum((draws.sum(axis=0) - expected) ** 2) / (expected * (1 - draws.mean()))
    assert 41 - 4 * np.sqrt(82) < statistic < 41 + 5 * np.sqrt(82)
    together = (draws.T.astype(float) @ draws)[np.triu_indices(42, 1)]
    statistic = np.sum((together - together.mean()) ** 2) / together.mean()
    assert 860 - 5 * np.sqrt(1720) < statistic < 860 + 5 * np.sqrt(1720)


@pytest.mark.parametrize("length", [2, 5, 14])
def test_short_rows_choose_the_share_asked_for_too(length):
    """Where single tokens leave many rows without a choice, whole words do not make up for it."""
    begins, special = np.arange(length) % 3 == 0, np.zeros(length, dtype=bool)
    generator = np.random.default_rng(0)
    draws = [utils.choose_words(begins, special, 0.15, generator).mean() for _ in range(20_000)]
    assert abs(np.mean(draws) - 0.15) < 0.01


def test_a_word_of_many_tokens_is_cut_into_even_pieces_at_whole_characters():
    tokenizer = bytes_alone()
    words = WholeWords(tokenizer)
    lengths = [len(word) for word in words_of(tokenizer, "(" + 50 * "a" + ")", words)]
    assert lengths == [1, 13, 13, 13, 11, 1]  # 50 = 4 pieces of at most LONGEST_WORD = 16
    assert {len(word) for word in words_of(tokenizer, 16 * "a", words)} == {16}
    pieces = words_of(tokenizer, "д\u0301" * 20, words)
    assert "".join(pieces) == "д\u0301" * 20 and len(pieces) > 3
    assert all(set(piece[::2]) == {"д"} and set(piece[1::2]) == {"\u0301"} for piece in pieces)


def test_a_departure_from_what_single_tokens_have_is_said_in_a_line(monkeypatch):
    tokenizer = ByteLevel(["one two three"], 0)
    examples = rows_of(tokenizer, "one two three " * 1000, 100)
    collator = DataCollatorMLM(tokenizer, whole_words=True)
    assert utils.masking_problem(collator, Rows(examples)) is None

    def all_or_nothing(begins, special, probability, generator):
        return ~special & (generator.random() < probability)

    monkeypatch.setattr(utils, "choose_words", all_or_nothing)
    problem = utils.masking_problem(collator, Rows(examples))
    said = r"of 100 rows' tokens .*% are chosen .*15.0%\), 1\d\.\d times as unevenly as .* \d\d% of the rows have none"
    assert re.search(said, problem)


@pytest.mark.filterwarnings("error")
def test_where_all_tokens_are_chosen_nothing_departs_and_nothing_is_divided_by_zero():
    tokenizer = ByteLevel(["one two three"], 0)
    collator = DataCollatorMLM(tokenizer, 1, whole_words=True)
    assert utils.masking_problem(collator, Rows(rows_of(tokenizer, "one two three " * 1000, 100))) is None


# ---------------------------------------------------------------- tools and tokenizers


@pytest.fixture
def without_icu(monkeypatch):
    for name in ("icu4py", "icu4py.breakers"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_the_library_chinese_and_kana_are_single_characters(without_icu):
    assert words_of(bytes_alone(), "天气很好。ですｶﾞ OK") == ["天", "气", "很", "好", "。", "で", "す", "ｶﾞ", " ", "OK"]


@pytest.mark.parametrize(("text", "is_told"), [("天气很好。", True), ("ですか。", True), ("With 天气.", False)])
def test_without_the_library_it_is_said_that_chinese_and_kana_are_single_characters(text, is_told, without_icu):
    tokenizer = bytes_alone()
    rows = Rows([{"input_ids": tokenizer.encode("Title")}, {"input_ids": tokenizer.encode(text)}])
    hint = utils.missing_dictionary(DataCollatorMLM(tokenizer, whole_words=True), rows)
    assert (hint is not None and "pip install icu4py==1.2.0" in hint) == is_told
    assert utils.missing_dictionary(DataCollatorMLM(tokenizer), rows) is None  # single tokens need none


def test_with_the_library_nothing_is_said_of_it():
    pytest.importorskip("icu4py")
    tokenizer = bytes_alone()
    rows = Rows([{"input_ids": tokenizer.encode("天气很好。")}])
    assert utils.missing_dictionary(DataCollatorMLM(tokenizer, whole_words=True), rows) is None


def test_a_run_on_thai_without_the_library_is_refused_with_what_to_do(without_icu, pretrain, tmp_path):
    text = tmp_path / "thai.txt"
    text.write_text("\n\n".join(["ขอบคุณมากครับสวัสดี" * 10] * 20))
    data = create(text, tmp_path / "data")
    expected = r"cannot tell the words of this text: do as follows, or leave it out \(whole words of Thai need"
    with pytest.raises(UserError, match=expected):
        pretrain("--max_steps", "1", "--whole_word_masking", "True", data=data)


def test_without_the_library_a_row_of_thai_that_no_sample_had_ends_no_run(
    without_icu, pretrain, tmp_path, monkeypatch, capsys
):
    """Its characters are masked one by one, as a few words of Thai in another row are; a line says so."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join([*(f"{i} words of English, again" * 20 for i in range(30)), *["ขอบคุณมาก" * 50] * 3]))
    data = create(text, tmp_path / "data")
    rows, (tokenizer, _) = utils.TokenRows(utils.open_data_set(str(data))["train"]), run_pretrain.load_tokenizer([data])
    collator, refused = DataCollatorMLM(tokenizer, whole_words=True), 0
    for row in range(len(rows)):
        try:
            collator([rows[0, row]])
        except ValueError:
            refused += 1
    assert refused > 0
    monkeypatch.setattr(utils, "sample_of", lambda rows, max_rows=300: [rows[0, 0]])
    pretrain("--num_train_epochs", "2", "--whole_word_masking", "True", data=data)
    warning = "warning: whole words of Thai need a dictionary: pip install icu4py==1.2.0; without it, rows of them are"
    assert capsys.readouterr().out.count(warning) == 1


@pytest.mark.parametrize("language", ["Thai", "Lao", "Khmer", "Burmese"])
def test_without_the_library_scripts_that_need_a_dictionary_are_refused(language, without_icu):
    tokenizer = bytes_alone()
    row = {"input_ids": tokenizer.encode(WITHOUT_SPACES[language].replace("|", ""))}
    with pytest.raises(ValueError, match=f"whole words of {language} need a dictionary: pip install icu4py==1.2.0"):
        DataCollatorMLM(tokenizer, whole_words=True)([row])
    assert np.any(DataCollatorMLM(tokenizer)([row])["labels"] != IGNORE_INDEX)  # single tokens need none


def test_without_the_library_a_foreign_name_in_a_row_ends_no_run(without_icu):
    found = words_of(bytes_alone(), "The capital is กรุงเทพ in Thai.")
    assert found[:6] == ["The", " ", "capital", " ", "is", " "]
    assert found[6:-5] == ["ก", "รุ", "ง", "เ", "ท", "พ"]
    assert found[-5:] == [" ", "in", " ", "Thai", "."]


def test_a_row_may_begin_and_end_within_a_character():
    tokenizer = bytes_alone()
    data = "气很好".encode()[1:-1]
    ids = np.concatenate([tokenizer.encode("")] + [[tokenizer_id(tokenizer, byte)] for byte in data])
    words = WholeWords(tokenizer)
    starts = np.flatnonzero(words.begins(ids)).tolist()
    assert starts[0] == 0 and 2 in starts and set(starts) <= {0, 2, 5}


def tokenizer_id(tokenizer: ByteLevel, byte: int) -> int:
    characters = {value: character for character, value in utils.bytes_of_characters().items()}
    return tokenizer.backend_tokenizer.token_to_id(characters[byte])


@pytest.mark.parametrize("kind", ["WordPiece", "Metaspace"])
def test_tokenizers_whose_words_cannot_be_told_are_refused(kind):
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "hello", "##wor", "▁wor", "ld"])}
    other = ByteLevel([], 0)
    if kind == "WordPiece":
        other.backend_tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="<unk>"))
        other.backend_tokenizer.decoder = tokenizers.decoders.WordPiece()
    else:
        other.backend_tokenizer = tokenizers.Tokenizer(
            tokenizers.models.Unigram([(token, 0.0) for token in vocabulary])
        )
        other.backend_tokenizer.decoder = tokenizers.decoders.Metaspace()
    assert len(other) == len(vocabulary)
    with pytest.raises(ValueError, match="whole words cannot be told from the tokens of ByteLevel"):
        DataCollatorMLM(other, whole_words=True)
    DataCollatorMLM(other)  # as single tokens they are masked


def test_the_bytes_alphabet_is_that_of_tokenizers():
    table = utils.bytes_of_characters()
    assert sorted(table.values()) == list(range(256)) and table["Ġ"] == 32 and table["Ċ"] == 10 and table["a"] == 97
    assert set(table) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_added_tokens_are_words_too_and_special_ones_are_never_touched():
    tokenizer = ByteLevel(["the patient had covidine for days"] * 9, 300)
    before = len(tokenizer)
    tokenizer.backend_tokenizer.add_tokens(["covidine", "naïveté"])
    tokenizer.backend_tokenizer.add_special_tokens([tokenizers.AddedToken("<doc>", special=True)])
    assert len(tokenizer) == before + 3
    text = "the patient<doc>had covidine, naïveté"
    assert words_of(tokenizer, text) == ["the", " patient", " ", "had", " ", "covidine", ",", " ", "naïveté"]
    doc = tokenizer.backend_tokenizer.token_to_id("<doc>")
    for whole in (False, True):
        collator = DataCollatorMLM(tokenizer, 0.9, whole_words=whole)
        batch = collator([{"input_ids": tokenizer.encode(text), "epoch": 0, "row": row} for row in range(500)])
        labels = batch["labels"]
        assert not np.isin(labels, [doc, *tokenizer.all_special_ids]).any()
        assert np.isin(labels, [before, before + 1]).any()
        randomized = batch["input_ids"][(labels != IGNORE_INDEX) & (batch["input_ids"] != labels)]
        assert not np.isin(randomized[randomized != tokenizer.mask_token_id], [doc, *tokenizer.all_special_ids]).any()
        assert np.isin(randomized, [before, before + 1]).any()


# ---------------------------------------------------------------- what is told


def test_the_identity_names_all_that_masks_depend_on(monkeypatch):
    tokenizer = bytes_alone()

    def identity(tokenizer=tokenizer, **options) -> dict:
        identity = DataCollatorMLM(tokenizer, **options).identity()
        assert json.loads(json.dumps(identity)) == identity
        return identity

    single, whole = identity(), identity(whole_words=True)
    assert single == identity() and whole == identity(whole_words=True) and single != whole
    others = [identity(mlm_probability=0.2), identity(seed=1), identity(ByteLevel(["more tokens"], 270))]
    monkeypatch.setattr(utils, "LONGEST_WORD", 8)
    others.append(identity(whole_words=True))
    for name, value in {"MASKED": 0.7, "RANDOMIZED": 0.2}.items():
        monkeypatch.setattr(utils, name, value)
        others.append(identity())
    assert len({json.dumps(other) for other in [single, whole, *others]}) == 8


def test_the_tool_that_cuts_words_is_part_of_the_identity():
    icu4py = pytest.importorskip("icu4py")
    segmenter = DataCollatorMLM(bytes_alone(), whole_words=True).identity()["masking.whole_words"]["segmenter"]
    assert segmenter == f"icu4py {importlib.metadata.version('icu4py')} (ICU {icu4py.icu_version})"


def test_so_is_its_absence(without_icu):
    segmenter = DataCollatorMLM(bytes_alone(), whole_words=True).identity()["masking.whole_words"]["segmenter"]
    assert segmenter == "single characters"


def test_a_row_is_shown_as_the_model_sees_it():
    tokenizer = ByteLevel(["the name of the object is stored in the list"] * 9, 320)
    text = "the name of the object is stored in the list\n在" * 3
    example = {"input_ids": np.array([0, *tokenizer.encode(text), 2]), "epoch": 0, "row": 0}
    seen = set()
    for row in range(40):
        collator = DataCollatorMLM(tokenizer, 0.3)
        shown = utils.describe_row(collator, tokenizer, example | {"row": row})
        batch = collator([example | {"row": row}])
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        chosen = labels != IGNORE_INDEX
        masked, kept = np.sum(ids[chosen] == 4), np.sum(ids[chosen] == labels[chosen])
        header, line = shown.splitlines()
        counts = f"{masked} masked, {chosen.sum() - masked - kept} random, {kept} unchanged of {len(ids) - 2} tokens:"
        assert header == f"a row as the model sees it, {counts}"
        assert line.count("<mask>") == masked and "\\n" in line and line.startswith("  <s>") and line.endswith("</s>")
        assert masked == 0 or "-> <mask>" in line
        seen.add(line)
    assert len(seen) == 40
    assert any("[ the -> <mask>]" in line for line in seen) and any("[ the ->  the]" in line for line in seen)
    assert utils.describe_row(collator, tokenizer, example, max_tokens=5).endswith(" ...")
    padded = DataCollatorMLM(tokenizer, 0.3, pad_to_multiple_of=512)
    assert utils.describe_row(padded, tokenizer, example) == utils.describe_row(collator, tokenizer, example)


def test_a_row_of_other_tokenizers_is_shown_by_its_tokens():
    words = {0: "<s>", 1: "he", 2: "##llo", 9: "<mask>"}
    tokenizer = SimpleNamespace(
        mask_token_id=9, pad_token_id=8, vocab_size=10, all_special_ids=[0, 8, 9],
        convert_ids_to_tokens=lambda ids: [words.get(i, f"other{i}") for i in ids],
    )  # fmt: skip
    shown = utils.describe_row(DataCollatorMLM(tokenizer, 1e-9), tokenizer, {"input_ids": [0, 1, 2]})
    assert shown.endswith("<s> he ##llo")
