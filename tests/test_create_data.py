"""create_data.py: every token of any text arrives, from any kind of file, and no accident leaves half of anything."""

import argparse
import ast
import bz2
import contextlib
import csv
import errno
import gzip
import hashlib
import html
import http.server
import io
import itertools
import json
import lzma
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import datasets
import gigatoken
import huggingface_hub
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import zstandard
from tokenizers import AddedToken, Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer

import create_data
import utils
from utils import UserError

ROOT = pathlib.Path(create_data.__file__).resolve().parent
KILLS = int(os.environ.get("KILLS", "10"))  # how many runs the test of SIGKILL kills
SPLITS = ["train", "validation"]
BOS, PAD, EOS, UNK = range(4)  # ids, in RoBERTa's vocabulary and in our own
MASK = 399  # in our own
PACKINGS = {"gz": gzip, "bz2": bz2, "xz": lzma, "zst": zstandard.ZstdCompressor(write_checksum=True)}
REAL_GETADDRINFO, REAL_CONNECT = socket.getaddrinfo, socket.socket.connect
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def as_read(text: str) -> str:
    """The text with what cannot be written in UTF-8 replaced, and line feeds for other line ends."""
    return LONE_SURROGATE.sub("?", text).replace("\r\n", "\n").replace("\r", "\n")


NASTY = [
    "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)),  # 1 MB without a space
    "1'2\"3,4;5" * 10_000,
    "family 👩‍👩‍👧‍👦, flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿, skin 👍🏽, keycap 1️⃣",
    "combining: e\u0301 a\u0323\u0302 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́O",
    "right to left: שָׁלוֹם עולם \u202eabc\u202c مرحبا بالعالم \u200f!",
    "control: \x00\x01\x07\x08\x0b\x0c\x1b\x1c\x7f\x85\xa0\u2028\u2029 and NUL\x00",
    "lone surrogates: \ud800 \udfff\ud800x\udc00",
    "\ud800",
    "CRLF\r\nand CR\rand LF\n\nand\ttab  and   spaces ",
    "\ufeffa byte-order mark\ufeff",
    "specials: </s> <s>x<mask> <mask>  <mask><pad> <unk></s></s>",
    "它是一种语言模型。用于自然语言处理！ 日本語のテキスト、한국어 문장",
    "लॉरेम इप्सम डोलोर क्षत्रिय ज्ञान",
    "ﷺ ﬁ Ω K İ ß \U0010ffff \ue000 \ufffe it's I'LL we've 3½ ²³",
]


def made_up(documents: int, words: int = 60, seed: int = 0) -> list:
    """Distinct documents of made-up words."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(500)]
    return [f"{i} {' '.join(draw.choices(vocabulary, k=draw.randint(5, words)))}." for i in range(documents)]


def write(path: pathlib.Path, texts: list, column: str = "text") -> pathlib.Path:
    """Writes documents in the format that the path's suffixes name."""
    records = [{"title": f"title {i}", column: text} for i, text in enumerate(texts)]
    data = {
        "txt": lambda: "\n\n".join(texts).encode(),
        "jsonl": lambda: "\n".join(map(json.dumps, records)).encode(),
        "lines.json": lambda: "\n".join(map(json.dumps, records)).encode(),
        "array.json": lambda: json.dumps(records, indent=1).encode(),
        "json": lambda: json.dumps(records).encode(),
        "object.json": lambda: json.dumps({column: texts}, indent=1).encode(),
        "csv": lambda: pandas.DataFrame(records).to_csv(index=False, quoting=csv.QUOTE_ALL).encode(),
        "tsv": lambda: pandas.DataFrame(records).to_csv(index=False, quoting=csv.QUOTE_ALL, sep="\t").encode(),
        "parquet": lambda: pandas.DataFrame(records).to_parquet(),
    }
    name = path.name.lower()
    packing = name.rpartition(".")[2]
    data = data[re.sub(r"\.(gz|bz2|xz|zst)$", "", name).split(".", 1)[1]]()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PACKINGS[packing].compress(data) if packing in PACKINGS else data)
    return path


def main(*arguments) -> None:
    create_data.main([str(argument) for argument in arguments])


def command(*arguments, first: str = "") -> list:
    """The command that runs the script, after the statements `first` in the same process."""
    code = f"{first}\nimport runpy; runpy.run_path('create_data.py', run_name='__main__')"
    return [sys.executable, *(["-c", code] if first else [ROOT / "create_data.py"]), *map(str, arguments)]


def script(*arguments, first: str = "", cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments, first=first), cwd=cwd, capture_output=True, text=True)


def card_of(out: pathlib.Path) -> dict:
    return json.loads((out / "data_card.json").read_text())


def rows_of(out: pathlib.Path, split: str) -> list:
    return datasets.load_from_disk(str(out))[split]["input_ids"][:]


def stream_of(out: pathlib.Path, split: str) -> list:
    """The ids of a split's packed rows one after another, without each row's <s> and </s>."""
    rows = datasets.load_from_disk(str(out))[split].data.column("input_ids").combine_chunks()
    if len(rows) == 0:
        return []
    return rows.flatten().to_numpy().reshape(len(rows), -1)[:, 1:-1].ravel().tolist()


def documents_of(out: pathlib.Path) -> dict:
    """The texts of each split, from rows of 4 tokens: so short that at most the last document's </s> was dropped."""
    tokenizer = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    texts = {split: tokenizer.decode(stream_of(out, split), skip_special_tokens=False) for split in SPLITS}
    return {split: text.removesuffix("</s>").split("</s>") for split, text in texts.items()}


def all_documents(out: pathlib.Path) -> list:
    return sorted(itertools.chain(*documents_of(out).values()))


def expected_stream(tokenizer: pathlib.Path, texts: list) -> list:
    """What the documents' stream has to be, by `tokenizers`."""
    reference, ids = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), []
    for start in range(0, len(texts), 256):
        for encoding in reference.encode_batch(texts[start : start + 256], add_special_tokens=False):
            ids += [*encoding.ids, EOS]
    return ids


def digest(out: pathlib.Path) -> str:
    """A hash of all rows, after checking that the data set is whole: data, tokenizer and card."""
    data, card = datasets.load_from_disk(str(out)), card_of(out)
    for name, file in card["files"].items():
        assert file == {"sha256": hashlib.sha256((out / name).read_bytes()).hexdigest()}
    assert {f"{split}/data-00000-of-00001.arrow" for split in SPLITS} <= set(card["files"])
    assert {f"tokenizer/{path.name}" for path in (out / "tokenizer").iterdir()} <= set(card["files"])
    assert {split: len(data[split]) for split in data} == {s: card["splits"][s]["rows"] for s in SPLITS}
    files = sorted(out.glob("*/*.arrow"))
    assert len(files) == 2
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def digest_of_tokens(out: pathlib.Path) -> str:
    return hashlib.sha256(json.dumps([stream_of(out, split) for split in SPLITS]).encode()).hexdigest()


def contents(folder: pathlib.Path) -> dict:
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path.parent / "no_hub_cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # saves half a minute of retries
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for the processes that a test starts
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")  # restores what main() sets
    yield
    huggingface_hub.utils.reset_sessions()  # one that was made offline would stay so for the tests that follow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> pathlib.Path:
    """The directory of our own tokenizer, of 400 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = write(folder / "text.txt", made_up(400))
    options = "--tokenizer_name train --vocab_size 400 --max_seq_length 16"
    main("--data_files", text, "--output_dir", folder / "out", *options.split())
    return folder / "out/tokenizer"


@pytest.fixture(params=["own", "roberta-base"])
def each_tokenizer(request) -> pathlib.Path:
    if request.param == "own":
        return request.getfixturevalue("tokenizer")
    return request.getfixturevalue("data_dir") / "roberta-base"


@pytest.fixture
def create(tmp_path, tokenizer):
    """Runs main() on documents or a path, in rows of 4 tokens if not told otherwise; returns the output directory."""

    def run(source, *options, name: str = "out") -> pathlib.Path:
        if isinstance(source, list):
            source = write(tmp_path / f"{name}.jsonl", source)
        defaults = ["--tokenizer_name", tokenizer, "--output_dir", tmp_path / name, "--max_seq_length", 4]
        main(*defaults, "--data_files", source, *options)
        return tmp_path / name

    return run


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("length", [4, 16, 100])
def test_a_packed_row_is_exactly_max_seq_length_long_and_its_specials_are_marked(create, length):
    texts = [f"{text} <pad> <mask> <unk>" for text in made_up(200)]
    out = create(texts, "--max_seq_length", length, "--validation_split_percentage", 10)
    data = datasets.load_from_disk(str(out))
    assert list(data) == SPLITS
    for split in data.values():
        assert split.features == {
            "input_ids": datasets.List(datasets.Value("uint16"), length=length),
            "special_tokens_mask": datasets.List(datasets.Value("bool"), length=length),
        }
        ids, special = (np.array(split[name][:]) for name in ("input_ids", "special_tokens_mask"))
        assert ids.shape == special.shape == (len(split), length) and len(split) > 10
        assert (ids[:, 0] == BOS).all() and (ids[:, -1] == EOS).all()
        assert np.array_equal(special, np.isin(ids, [BOS, PAD, EOS, UNK, MASK]))
        assert all((ids[:, 1:-1] == token).any() for token in (PAD, EOS, UNK, MASK))


def test_ids_are_int32_where_the_vocabulary_is_above_65536(create, tokenizer, tmp_path):
    definition = json.loads((tokenizer / "tokenizer.json").read_text())
    vocab = definition["model"]["vocab"]
    vocab.setdefault("<mask>", len(vocab))
    for size, dtype in ((65_536, "uint16"), (65_537, "int32")):
        vocab.update({f"unused{i}": i for i in range(len(vocab), size)})
        folder = tmp_path / f"vocabulary{size}"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(definition))
        out = create(["one", "two"], "--tokenizer_name", folder, name=f"out{size}")
        assert datasets.load_from_disk(str(out))["train"].features["input_ids"].feature.dtype == dtype
        assert all_documents(out) == ["one", "two"]


@pytest.mark.parametrize("documents, words, length", [(300, 60, 4), (300, 60, 50), (150, 12_000, 512)])
def test_every_token_of_every_document_is_there_in_order_once(create, tokenizer, capsys, documents, words, length):
    texts = made_up(documents, words)
    kept = documents_of(create(texts, name="short"))
    assert sorted(kept["train"] + kept["validation"]) == sorted(texts)
    capsys.readouterr()
    out = create(texts, "--max_seq_length", length)
    printed, card = capsys.readouterr().out, card_of(out)
    for split in SPLITS:
        assert kept[split] == [text for text in texts if text in kept[split]]
        expected, found = expected_stream(tokenizer, kept[split]), stream_of(out, split)
        assert found == expected[: len(found)] and found
        dropped = len(expected) - len(found)
        assert dropped < length - 2
        assert card["splits"][split] == {
            "documents": len(kept[split]),
            "tokens": len(expected) - len(kept[split]),
            "rows": len(found) // (length - 2),
            "dropped_tokens": dropped,
        }
        assert re.search(rf"^{split}\b.*\b{dropped:,} dropped_tokens", printed, re.MULTILINE)


def test_line_by_line_gives_a_row_for_each_line_that_is_not_blank(create, tokenizer):
    texts = [f"{text}\n\n \t\n{i} another line\n" for i, text in enumerate(made_up(100))]
    out = create(texts, "--line_by_line", "True", "--max_seq_length", 32, "--validation_split_percentage", 20)
    reference, card, lines_found = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), card_of(out), 0
    for split, kept in documents_of(create(texts, "--validation_split_percentage", 20, name="packed")).items():
        lines = [line for text in kept for line in text.split("\n") if line.strip()]
        encoded = [reference.encode(line, add_special_tokens=False).ids for line in lines]
        rows = rows_of(out, split)
        assert rows == [[BOS, *ids[:30], EOS] for ids in encoded]
        assert min(map(len, rows)) < 32 and max(map(len, rows)) == 32
        assert card["splits"][split]["dropped_tokens"] == sum(len(ids[30:]) for ids in encoded) > 0
        assert card["splits"][split]["lines"] == len(lines) and "documents" not in card["splits"][split]
        lines_found += len(lines)
    assert lines_found == 200


# ---------------------------------------------------------------- text


def test_ids_of_nasty_text_equal_those_of_tokenizers(create, each_tokenizer):
    options = "--max_seq_length", 64, "--validation_split_percentage", 0, "--tokenizer_name", each_tokenizer
    found = stream_of(create([*NASTY, *made_up(50)], *options), "train")
    expected = expected_stream(each_tokenizer, [as_read(text) for text in NASTY])
    assert found[: len(expected)] == expected


SCRIPTS = """The quick brown fox didn't jump; it's 12.5 metres, they've said!
Съешь же ещё этих мягких французских булок, да выпей чаю 42
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία στις 3 το πρωί
דג סקרן שט בים מאוכזב ולפתע מצא חברה
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ١٢٣
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश १२३
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。 寒來暑往 秋收冬藏
いろはにほへと ちりぬるを、わかよたれそ。 カタカナ ﾊﾝｶｸ
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓
ሰማይ አይታረስ ንጉሥ አይከሰስ። Բել դղյակի ձախ ժամն օֆ ազգությանը
spaces:   three  two \t tab\u00a0no-break \u3000wide \x1c separator \u180e vowel\x85 next </s> <mask>  <mask> ''x' 'll
"""


@pytest.fixture
def cut_after(monkeypatch):
    """Has texts cut into much shorter pieces."""

    def use(size: int) -> None:
        pattern = create_data.PIECES.pattern.replace(b"{250000}", b"{%d}" % size)
        monkeypatch.setattr(create_data, "PIECES", re.compile(pattern))
        assert len(create_data.PIECES.findall(b"12 " * size)) > 1

    return use


@pytest.mark.parametrize("piece", [20, 100])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_document_in_pieces_has_the_tokens_of_the_whole(
    create, tmp_path, each_tokenizer, cut_after, monkeypatch, piece, kind
):
    draw = random.Random(piece)
    text = SCRIPTS * 3 + " ".join(draw.choices(SCRIPTS.split(" "), k=2000))
    assert text.count("\n\n") == 0
    whole = expected_stream(each_tokenizer, [text])
    write(tmp_path / f"a.{kind}", [text])
    cut_after(piece)
    monkeypatch.setattr(create_data, "BUFFER", 200)
    cut = [*create_data.pieces(create_data.text_of(text, "text"), False)]
    assert len(cut) > len(text) / piece / 2
    assert b"".join(part for part, _ in cut).decode() == text.strip("\n")
    assert [ends for _, ends in cut] == [False] * (len(cut) - 1) + [True]
    held_out = write(tmp_path / "held_out.jsonl", ["other"])
    options = "--tokenizer_name", each_tokenizer, "--validation_files", held_out
    if kind == "txt":
        options = *options, "--document_separator", "empty_line"
    out = create(tmp_path / f"a.{kind}", *options)
    found = stream_of(out, "train")
    assert 0 <= len(whole) - len(found) < 2 and found == whole[: len(found)]
    lines = [line for line in text.split("\n") if line.strip()]
    by_line = create(tmp_path / f"a.{kind}", *options, "--line_by_line", "True", "--max_seq_length", 8, name="lines")
    reference = Tokenizer.from_file(str(each_tokenizer / "tokenizer.json"))
    expected = [[BOS, *reference.encode(line, add_special_tokens=False).ids[:6], EOS] for line in lines]
    assert rows_of(by_line, "train") == expected


@pytest.mark.parametrize(
    "alphabet", ["etaoinshrdlucmfw", "a", "0123456789", "ACGT", "=-", "ab1.,'s", "'restlqx", "Ωж語ก็👩é"]
)
def test_a_text_without_white_space_has_the_tokens_of_the_whole(create, each_tokenizer, cut_after, alphabet):
    text = "".join(random.Random(0).choices(alphabet, k=20_000))
    whole = expected_stream(each_tokenizer, [text])
    cut_after(20)
    found = stream_of(create([text, "other"], "--tokenizer_name", each_tokenizer), "train")
    assert len(whole) - len(found) < 2 and found == whole[: len(found)]


SAY_AT_THE_END = """
import atexit, os, re, sys
exit = os._exit
say = atexit.register(lambda: print({what}, file=sys.stderr, flush=True))  # --help ends with sys.exit()
os._exit = lambda status: (say(), exit(status))
"""
# Not ru_maxrss, which the script prints: it begins with that of the process that starts it.
SAY_PEAK = SAY_AT_THE_END.format(what="re.search('VmHWM:[^0-9]*([0-9]+)', open('/proc/self/status').read())[1]")
SAY_MODULES = SAY_AT_THE_END.format(what="*sys.modules")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random words", "one document", "one line"])
def test_memory_is_bounded_for_any_text(tmp_path, data_dir, kind):
    """A tenth of the sizes that were measured by hand: at most 600 MB here, 1 GB there."""
    draw, path = np.random.default_rng(0), tmp_path / "a.txt"
    if kind == "random words":
        letters = (draw.integers(0, 26, 60_000_000) + ord("a")).astype(np.uint8)
        letters[np.cumsum(draw.integers(4, 13, 5_000_000))] = ord(" ")
        text = letters.tobytes()
        text = b"\n\n".join(text[i : i + 10_000] for i in range(0, len(text), 10_000))
    else:
        lines = (data_dir / "wiki/train.txt").read_bytes().replace(b"\n\n", b"\n") * 2
        text = (lines.replace(b"\n", b" ") if kind == "one line" else lines) + b"\n\nlast " * 600
    path.write_bytes(text)
    options = "--tokenizer_name", data_dir / "roberta-base", "--output_dir", tmp_path / "out"
    options = *options, "--document_separator", "empty_line", "--validation_split_percentage", 50
    result = script("--data_files", path, *options, first=SAY_PEAK)
    assert result.returncode == 0, result.stderr
    assert 100 < int(result.stderr.split()[-1]) / 1000 < 600


def test_the_encoders_cache_is_emptied_and_the_tokens_stay(create, monkeypatch):
    texts = made_up(300, words=400)
    before = digest_of_tokens(create(texts, name="before"))
    loaded = []

    class Counted:
        @staticmethod
        def from_json(definition):
            loaded.append(definition)
            return encoder_of(definition)

    encoder_of = gigatoken.Tokenizer.from_json
    monkeypatch.setattr(gigatoken, "Tokenizer", Counted)
    monkeypatch.setattr(create_data, "CACHE", -(10**10))
    monkeypatch.setattr(create_data, "BUFFER", 10_000)
    assert digest_of_tokens(create(texts, name="after")) == before
    assert len(loaded) > 20


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces what gigatoken makes of single texts, which are compared with `tokenizers`."""
    encoder_of = gigatoken.Tokenizer.from_json

    def use(encode):
        class StandIn:
            def __init__(self, definition):
                self.encoder = encoder_of(definition)
                self.encode_batch = self.encoder.encode_batch

            def encode(self, text):
                return encode(self.encoder, text)

        monkeypatch.setattr(gigatoken, "Tokenizer", argparse.Namespace(from_json=StandIn))

    return use


def test_the_sample_compared_with_tokenizers_is_of_the_whole_run(create, stand_in, monkeypatch):
    """What is asked is noted, as no tokenizer is known that differs late in a run only."""
    monkeypatch.setattr(create_data, "BUFFER", 50_000)
    monkeypatch.setattr(create_data, "CHECKED", 1000)
    checked = []
    stand_in(lambda gigatoken, text: checked.append(text.decode()) or gigatoken.encode(text))
    create(made_up(4000))
    numbers = [int(number) for text in checked for number in re.findall(r"(?<=\0)\d+(?= )", text)]
    assert max(numbers) > 3000 and len(set(numbers)) >= 5
    assert len(checked) > 5 and max(map(len, checked)) == 1000


def test_text_that_gigatoken_encodes_otherwise_is_refused(create, stand_in):
    """A stand-in for gigatoken that loses a token: any difference in the sample ends the run."""
    stand_in(lambda gigatoken, text: gigatoken.encode(text)[:-1])
    with pytest.raises(UserError, match=r"gigatoken differs at .*: choose another tokenizer"):
        create(made_up(30))


def test_added_tokens_that_gigatoken_does_not_find_are_refused_wherever_they_stand_in_the_text(create, stand_in):
    """They are tried at once, as the text that is compared later may hold none of them."""
    stand_in(lambda gigatoken, text: gigatoken.encode(text)[:-1] if b"<mask>" in text else gigatoken.encode(text))
    with pytest.raises(UserError, match=r"gigatoken differs at .*: choose another tokenizer"):
        create(made_up(30))


@pytest.mark.slow
def test_ids_of_all_articles_equal_those_of_tokenizers(create, data_dir):
    path, tokenizer = data_dir / "wiki/train.txt", data_dir / "roberta-base"
    out = create(path, "--tokenizer_name", tokenizer, "--max_seq_length", 512, "--validation_split_percentage", 0)
    *articles, _ = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())
    expected, found = (np.array(ids) for ids in (expected_stream(tokenizer, articles), stream_of(out, "train")))
    assert len(articles) == 2090 and len(expected) > 6_000_000
    assert 0 <= len(expected) - len(found) < 510
    assert np.array_equal(found, expected[: len(found)])
    assert card_of(out)["splits"]["validation"]["documents"] == 1


@pytest.mark.parametrize(("lines", "separator"), [(9_990, "empty_line"), (10_010, "line")])
def test_an_empty_line_is_looked_for_in_the_first_10000_lines(tmp_path, lines, separator):
    (tmp_path / "a.txt").write_text("line\n" * lines + "\nlast")
    [source] = create_data.find_files([str(tmp_path / "a.txt")], "text", None, False)
    documents = [*create_data.read_documents([source])]
    assert source.separated_by == separator and len(documents) == (2 if separator == "empty_line" else lines + 1)


def test_lines_are_taken_until_they_are_so_many_or_so_large():
    lines = [b"x" * 10] * 9
    assert [len(create_data.take(iter(lines), most, size)) for most, size in ((3, 99), (99, 35), (99, 999))] == [
        3,
        4,
        9,
    ]


TEXT_FILES = {  # content, --document_separator, documents
    "empty lines": (b"one\ntwo\n\nthree\n\n\n\nfour", "", ["one\ntwo", "three", "four"]),
    "white space": (b"\n\none\n \t\ntwo\n\n", "", ["one", "two"]),
    "an empty line first": (b" \n\n  one\n\ntwo\n \t", "", ["  one", "two"]),
    "BOM and CRLF": (b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n", "", ["one\ntwo", "three"]),
    "other white space": ("one\ntwo\n\u3000\nthree\n\xa0\nfour".encode(), "", ["one\ntwo", "three", "four"]),
    "no empty lines": (b"one\ntwo\nthree\n", "", ["one", "two", "three"]),
    "a stray empty line": (b"one\ntwo\n\nthree\n", "line", ["one", "two", "three"]),
    "one document": (b"one\ntwo\n\nthree\n", "file", ["one\ntwo\n\nthree"]),
    "no empty lines to end at": (b"one\ntwo\nthree\n", "empty_line", ["one\ntwo\nthree"]),
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_documents_of_a_text_file_end_at_what_separates_them(create, tmp_path, capsys, name):
    raw, separator, documents = TEXT_FILES[name]
    write(tmp_path / "b.jsonl", ["last"])
    (tmp_path / "a.txt").write_bytes(raw)
    files = tmp_path / "a.txt", "--data_files", tmp_path / "a.txt", tmp_path / "b.jsonl"
    out = create(*files, *(["--document_separator", separator] if separator else []))
    assert all_documents(out) == sorted([*documents, "last"])
    used = separator or ("line" if name == "no empty lines" else "empty_line")
    printed = capsys.readouterr()
    assert f"1 text file read with --document_separator {used}\n" in printed.out and "warning" not in printed.err


def test_how_text_files_are_divided_is_printed_once(create, tmp_path, capsys):
    for i in range(20):
        write(tmp_path / f"x/{i}.txt", [f"{i}\n{text}" for text in made_up(1 if i % 2 else 21, seed=i)])
    create(tmp_path / "x", "--document_separator", "file")
    printed = capsys.readouterr()
    assert printed.out.count("--document_separator") == 1 and not printed.err
    assert "20 text files read with --document_separator file\n" in printed.out


def test_empty_and_white_documents_give_nothing(create):
    out = create(["", " ", "one", "\n\t\n", "\u3000\xa0", None, "two", ""])
    assert all_documents(out) == ["one", "two"]
    assert sum(card_of(out)["splits"][split]["documents"] for split in SPLITS) == 2


# ---------------------------------------------------------------- validation split


def test_the_documents_held_out_are_a_function_of_seed_and_number_alone(create):
    texts, share = made_up(300), ("--validation_split_percentage", 20)
    held_out = documents_of(create(texts, *share))["validation"]
    assert 0.1 * 300 < len(held_out) < 0.3 * 300

    other_tokenizer = create(texts, *share, "--tokenizer_name", "train", "--vocab_size", 300, name="tokenizer")
    assert documents_of(other_tokenizer)["validation"] == held_out
    longer = stream_of(create(texts, *share, "--max_seq_length", 64, name="longer"), "validation")
    assert longer == stream_of(create(texts, *share, name="again"), "validation")[: len(longer)]
    fewer = documents_of(create(texts[:100], *share, name="fewer"))["validation"]
    assert fewer == [text for text in held_out if text in texts[:100]]
    long_texts = documents_of(create(made_up(300, words=6000), *share, name="long"))["validation"]
    assert [text.split()[0] for text in long_texts] == [text.split()[0] for text in held_out]
    other_seed = documents_of(create(texts, *share, "--seed", 7, name="seed"))["validation"]
    assert set(other_seed) != set(held_out) and len(other_seed) > 30


def test_a_text_that_is_given_twice_is_told(create, tmp_path, capsys):
    texts = made_up(200)
    once = write(tmp_path / "c/a.jsonl", texts)
    twice = write(tmp_path / "c/b.txt", [*texts[:150], *made_up(50, seed=1)])
    create(once, name="once")
    assert "copies" not in capsys.readouterr().out
    create(tmp_path / "c")
    told = "38% of the documents are copies of others, and count twice: is some text given twice?"
    assert f"{told} Copies of drawn documents are trained on\n" in capsys.readouterr().out
    create(tmp_path / "c", "--validation_files", write(tmp_path / "v.txt", ["other"]), name="held_out")
    assert f"{told}\n" in capsys.readouterr().out
    create(twice, name="differs")
    assert "copies" not in capsys.readouterr().out
    create(tmp_path / "c", "--validation_split_percentage", 100, name="all")
    assert f"{told}\n" in capsys.readouterr().out


@pytest.mark.parametrize("lengths", [(1_000, 1_003), (40, 40)])
def test_the_share_of_copies_is_estimated_with_bounded_memory(monkeypatch, lengths):
    monkeypatch.setattr(create_data, "MOST_KNOWN", 1_000)
    draw = random.Random(0)
    documents = [draw.randbytes(draw.randint(*lengths)) for _ in range(5_000)]
    documents += documents[2_000:3_500]
    copies = create_data.Copies()
    assert list(copies.counted_in(iter(documents))) == documents
    assert len(copies.known) <= 1_000 and copies.step == 8
    assert 0.15 < copies.share < 0.31  # 0.23
    often, few = b"Not found", create_data.Copies()  # one text of twenty that comes again and again
    list(few.counted_in(iter([text for i in range(0, 5_000, 20) for text in [often, *documents[i : i + 19]]])))
    assert few.share < 0.1


def test_the_first_document_of_a_text_file_is_told_at_the_start(create, tmp_path, capsys):
    lines = write(tmp_path / "lines.txt", ["one\ntwo\nthree"])
    parted = write(tmp_path / "parted.txt", ["one\ntwo", "three", "four"])
    for path, separator, told in ((lines, "line", "1 line"), (parted, "empty_line", "2 lines")):
        create(path, name=path.stem)
        first = capsys.readouterr().out.splitlines()[0]
        assert first == f"{path}: --document_separator {separator}; the first document has {told}"
    create(parted, "--document_separator", "line", name="given")
    assert "first document" not in capsys.readouterr().out


def test_a_text_that_comes_through_a_pipe_is_read_once(create, tmp_path):
    texts = made_up(40)
    os.mkfifo(tmp_path / "a.txt")
    writer = threading.Thread(target=lambda: (tmp_path / "a.txt").write_text("\n\n".join(texts)))
    writer.start()
    assert all_documents(create(tmp_path / "a.txt")) == sorted(texts)
    writer.join()


def test_a_validation_that_holds_most_of_the_text_is_told(create, tmp_path, capsys):
    """A stray empty line makes two documents of a file with one a line, of which one is held out."""
    texts = made_up(100)
    (tmp_path / "a.txt").write_text("\n".join(texts[:5]) + "\n\n" + "\n".join(texts[5:]))
    create(tmp_path / "a.txt")
    warning = "warning: validation is larger than train: set --document_separator"
    assert warning in capsys.readouterr().out
    create(tmp_path / "a.txt", "--document_separator", "line", name="lines")
    create(tmp_path / "a.txt", "--validation_split_percentage", 50, name="half")
    assert warning not in capsys.readouterr().out
    create(["one", "two " * 20], name="records")
    assert "warning: validation is larger than train: look at what the documents are\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", [60, 12_000])
def test_the_last_document_alone_is_held_out_where_none_is_drawn(create, words):
    texts = made_up(150, words)
    assert documents_of(create(texts, "--validation_split_percentage", 0)) == {
        "train": texts[:-1],
        "validation": texts[-1:],
    }


def test_everything_can_be_held_out(create, capsys):
    texts = made_up(40)
    out = create(texts, "--validation_split_percentage", 100)
    assert documents_of(out) == {"train": [""], "validation": texts}
    assert len(datasets.load_from_disk(str(out))["train"]) == 0
    assert digest(out) and re.search(r"^train: .*\b0 rows", capsys.readouterr().out, re.MULTILINE)


def test_files_can_be_held_out(create, tmp_path, capsys):
    texts, held_out = made_up(60), made_up(70)[60:]
    out = create(texts, "--validation_files", write(tmp_path / "held_out.txt", held_out))
    assert documents_of(out) == {"train": texts, "validation": held_out}
    inputs = card_of(out)["inputs"]
    assert {split: [source["documents"] for source in sources] for split, sources in inputs.items()} == {
        "train": [60],
        "validation": [10],
    }
    assert re.search(r"^read: [\d,]+ bytes of 2 files$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("separator", ["empty_line", "line", "file"])
def test_text_is_divided_at_its_separators_alone(tmp_path, separator):
    draw, path = random.Random(0), tmp_path / "a.txt"
    pattern = {"empty_line": r"\n\s*\n", "line": r"\n", "file": r"(?!)"}[separator]
    for _ in range(100):
        text = "x" + "".join(draw.choices(["a", "é", " ", "\n", "\r\n", "\n\n"], k=60))
        path.write_bytes(text.encode())
        parts = re.split(pattern, text.replace("\r\n", "\n") + "\n")
        expected = [part.strip("\n") for part in parts if part.strip()]
        sources = create_data.find_files([str(path)], "text", separator, False)
        found = [document.decode() for document in create_data.read_documents(sources)]
        assert found == expected, text


def test_line_ends_around_a_text_and_where_it_is_cut_change_nothing(create, tmp_path, cut_after):
    texts = made_up(60, words=200)
    card = card_of(create(write(tmp_path / "a.jsonl", [f"{text}\n" for text in texts]), name="first"))
    cut_after(50)
    cut = card_of(create(texts, name="cut"))
    assert (cut["splits"], cut["files"]) == (card["splits"], card["files"])


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_the_first_documents_can_be_taken_alone(create, tmp_path, kind):
    texts = made_up(40)
    path = write(tmp_path / f"a.{kind}", ["", " ", *texts])
    assert all_documents(create(path, "--max_documents", 7)) == sorted(texts[:7])
    assert all_documents(create(path, "--max_documents", 70, name="all")) == sorted(texts)


def test_a_row_length_that_was_not_chosen_is_512(tmp_path, tokenizer):
    text = write(tmp_path / "a.jsonl", made_up(200))
    options = "--data_files", text, "--tokenizer_name", tokenizer, "--validation_split_percentage", 10
    main(*options, "--output_dir", tmp_path / "out")
    assert card_of(tmp_path / "out")["arguments"]["max_seq_length"] == 512
    assert {len(row) for split in SPLITS for row in rows_of(tmp_path / "out", split)} == {512}


def test_a_split_that_fills_no_row_is_an_error_with_its_numbers_and_remedies(create, tmp_path, capsys):
    texts = made_up(200, words=12)
    create(texts, name="short")
    counts = card_of(tmp_path / "short")["splits"]["validation"]
    expected = rf"validation: {counts['documents']} documents, {counts['tokens']} tokens, 0 rows, .*: lower --max"
    with pytest.raises(UserError, match=f"{expected}_seq_length, .*or add text"):
        create(texts, "--max_seq_length", 512, name="long")
    with pytest.raises(UserError, match=r"all documents are held out for validation: raise --max_documents$"):
        create(texts, "--max_documents", 1, name="long")
    assert counts["documents"] and not list(tmp_path.glob("long*/"))


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".xz", ".GZ"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "array.json", "lines.json", "csv", "parquet", "TXT", "JSONL"])
def test_every_kind_of_file_gives_the_same_rows(create, tmp_path, kind, packing):
    if kind == "parquet" and packing:
        pytest.skip("Parquet packs its columns itself: see the table of errors")
    texts = [*made_up(40), 'two\nlines, "quotes", commas', "Ελληνικά, 中文, 👩‍👧", "last"]
    from_file = create(write(tmp_path / f"a.{kind}{packing}", texts))
    assert digest(from_file) == digest(create(texts, name="jsonl"))
    assert all_documents(from_file) == sorted(texts)


def test_globs_and_directories_are_read_in_order_several_at_once(create, tmp_path):
    texts = made_up(9)
    (tmp_path / "x/folder.txt").mkdir(parents=True)  # a directory that is called like a file
    for i, name in enumerate(["x/a.txt", "x/b/c.jsonl.gz", "x/d.csv", "y1.jsonl", "y2.jsonl", "y3.jsonl", "z.jsonl"]):
        write(tmp_path / name, texts[i : i + 1] if i else ["", texts[0]])
    (tmp_path / "x/README.md").write_text("not text to train on")
    out = create(tmp_path / "x", tmp_path / "y[12].*", tmp_path / "z.jsonl", "--validation_split_percentage", 0)
    found = documents_of(out)
    assert found["train"] + found["validation"] == [texts[i] for i in (0, 1, 2, 3, 4, 6)]


def test_a_glob_that_matches_directories_and_files_reads_each_file_once(tmp_path):
    for name in ("a.txt", "b/c.txt", "b/d/e.txt"):
        write(tmp_path / "x" / name, ["one", "two"])
    found = create_data.find_files([str(tmp_path / "x/**")], "text", None, False)
    assert sorted(os.path.relpath(source.path, tmp_path / "x") for source in found) == ["a.txt", "b/c.txt", "b/d/e.txt"]


def test_a_file_that_is_named_twice_is_read_once_and_no_linked_directory(create, tmp_path):
    texts = made_up(12)
    for i in range(3):
        write(tmp_path / f"x/{i}.jsonl", texts[4 * i : 4 * i + 4])
    (tmp_path / "x/loop").symlink_to(tmp_path / "x")
    (tmp_path / "x/link.jsonl").symlink_to(tmp_path / "x/1.jsonl")
    first = tmp_path / "x/0.jsonl"
    assert all_documents(create(first, tmp_path / "x/../x/0.jsonl", tmp_path / "x")) == sorted(texts)


def test_a_dangling_link_is_one_line(create, tmp_path):
    (tmp_path / "a.txt").symlink_to("missing")
    with pytest.raises(UserError, match=r"cannot read .*a\.txt .*No such file"):
        create(tmp_path / "a.txt")


def test_a_url_is_read_like_a_file(create, tmp_path):
    """file://, as one of fsspec's; http:// has tests of its own below."""
    texts = made_up(9)
    for name in ("a.txt", "b.jsonl.gz", "c.parquet"):
        url = write(tmp_path / name, texts).as_uri()
        assert all_documents(create(url, name=f"out_{name}")) == sorted(texts)
    with pytest.raises(UserError, match=r"cannot read file://.*missing"):
        create((tmp_path / "missing.txt").as_uri())


def test_the_working_directory_is_never_replaced(create, tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", made_up(9))
    out = create(path)
    before = contents(out)
    monkeypatch.chdir(out)
    with pytest.raises(UserError, match="holds the working directory"):
        create_data.main(["--data_files", str(path), "--output_dir", ".", "--overwrite_output_dir", "True"])
    assert contents(out) == before


def test_a_working_directory_that_was_deleted_is_in_nobodys_way(tmp_path, monkeypatch):
    """As that of a run under nohup, whose checkpoints lie elsewhere."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with utils.atomic_directory(str(tmp_path / "new")) as folder:
        pathlib.Path(folder, "a.txt").write_text("one")
    assert (tmp_path / "new/a.txt").read_text() == "one"


def test_a_tokenizer_that_truncates_and_pads_gives_every_token(create, tmp_path):
    first = create(write(tmp_path / "a.txt", made_up(9)), name="first")
    tokenizer = Tokenizer.from_file(str(first / "tokenizer/tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(first / "tokenizer/tokenizer.json"))
    second = create(tmp_path / "a.txt", "--tokenizer_name", first / "tokenizer", name="second")
    assert all_documents(second) == all_documents(first)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_text_column_names_the_column_and_the_error_lists_what_there_is(create, tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", ["one", "two"], "body")
    assert all_documents(create(path, "--text_column", "body")) == ["one", "two"]
    with pytest.raises(UserError, match=rf"a.{kind}\b.*no column 'text', but 'title', 'body'.*--text_column"):
        create(path, name="none")
    assert not list(tmp_path.glob("none*"))


def test_csv_is_read_as_it_is_commonly_written(create, tmp_path):
    long = "word " * 500_000
    raw = f'\ufeff\r\nid,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,NULL\r\n3,\r\n4,"{long}"\r\n5,last'
    (tmp_path / "a.csv").write_bytes(raw.encode())
    (tmp_path / "b.csv").write_bytes(b"")
    (tmp_path / "c.csv").write_bytes(b"text")
    out = create(tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv")
    assert all_documents(out) == sorted(['two\nlines, "quoted"', "NULL", long, "last"])


def test_a_tsv_is_read_with_quotation_marks_as_quotes_or_as_characters(create, tmp_path):
    """As pandas writes it, and as GLUE's files are; lines of quoted fields may stand in several."""
    (tmp_path / "plain.tsv").write_text('id\ttext\n1\t"We were wrong , he said .\n2\tHarmless .\n3\t"\n4\t"so" it is\n')
    out = create(tmp_path / "plain.tsv", name="plain")
    assert all_documents(out) == ['"', '"We were wrong , he said .', '"so" it is', "Harmless ."]
    harmless = [f"{i} harmless" for i in range(create_data.GUESSED_FROM + 1)]
    late = ['"We were wrong', "found", "found, too", 'ends here"', "last"]
    (tmp_path / "late.tsv").write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(["text", *harmless, *late])))
    source = create_data.Source(str(tmp_path / "late.tsv"), create_data.read_tsv, "text")
    assert [*create_data.read_documents([source])] == [text.encode() for text in (*harmless, *late)]
    texts = ['"quoted"', "two\nlines", 'a "word"', "a\ttab", "plain"]
    pandas.DataFrame({"id": range(5), "text": texts}).to_csv(tmp_path / "quoted.tsv", sep="\t", index=False)
    assert all_documents(create(tmp_path / "quoted.tsv", name="quoted")) == sorted(texts)


def test_the_demo_needs_no_network(create, tmp_path, tokenizer):
    main("--dataset_name", "demo", "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out")
    assert 1e6 < sum(card_of(tmp_path / "out")["splits"][split]["tokens"] for split in SPLITS) < 5e6
    assert digest(tmp_path / "out")


# ---------------------------------------------------------------- hub

PAGE = r"""
python create_data.py \
--output_dir wiki \
--dataset_name wikipedia \
--dataset_config_name 20200501.en \
---tokenizer_name roberta-base \
--max_seq_length 512 \
--line_by_line False \
--preprocessing_num_workers 20
"""


def test_the_original_pages_command_reads_the_dump_that_there_is(monkeypatch, tmp_path, tokenizer, capsys):
    cached = tmp_path / "hub/models--roberta-base"
    shutil.copytree(tokenizer, cached / "snapshots/0123")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    texts, asked = made_up(50, words=3000), []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, *options.values()))
        return datasets.Dataset.from_dict({"title": texts, "text": texts}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    main(*shlex.split(PAGE.replace("\\\n", " "))[2:])
    assert asked and set(asked) == {("wikimedia/wikipedia", "20231101.en", "train", True)}  # streamed
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and "wikipedia is gone" in warning and "20231101.en" in warning
    splits = card_of(tmp_path / "wiki")["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == len(texts)
    assert digest(tmp_path / "wiki") and "wikimedia/wikipedia" in card_of(tmp_path / "wiki")["source"]


def test_a_hub_that_cannot_be_reached_is_one_line_that_offers_local_text(monkeypatch, tmp_path, tokenizer):
    def unreachable(*arguments, **options):
        raise ConnectionError("cannot reach huggingface.co\nand a second line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError) as error:
        main("--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out")
    for part in ("wikimedia/wikipedia", "cannot reach huggingface.co", "--data_files"):
        assert part in str(error.value)
    assert "\\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.fixture
def hub(tmp_path) -> pathlib.Path:
    """A folder in the form of a data set of the hub: two configurations, and a split that is not called train."""
    for config in ("latin", "greek"):
        for i in range(2):
            shard = tmp_path / f"hub/{config}/test-0000{i}-of-00002.parquet"
            write(shard, [f"{config} {i} {text}" for text in made_up(30)])
    files = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: test\n    path: {config}/test-*\n"
        for config in ("latin", "greek")
    )
    (tmp_path / "hub/README.md").write_text(f"---\nconfigs:\n{files}---\n")
    return tmp_path / "hub"


def test_a_data_set_of_the_hub_is_streamed(hub, tmp_path, tokenizer, monkeypatch, capsys):
    real, streamed = datasets.load_dataset, []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **how: streamed.append(how["streaming"]) or real(*names, **how)
    )
    options = "--tokenizer_name", tokenizer, "--max_seq_length", 4, "--output_dir", tmp_path / "out"
    of_greek = "--dataset_name", hub, "--dataset_config_name", "greek", "--split", "test"
    main(*of_greek, *options)
    assert all_documents(tmp_path / "out") == sorted(f"greek {i} {text}" for i in range(2) for text in made_up(30))
    assert streamed == [True] and f"read: 60 documents of {hub}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="no column 'body', but 'title', 'text'"):
        main(*of_greek, "--text_column", "body", *options, "--overwrite_output_dir", "True")


def test_pictures_beside_the_text_of_a_data_set_are_not_decoded(tmp_path, tokenizer):
    features = datasets.Features({"picture": datasets.Image(), "text": datasets.Value("string")})
    pictures = [{"bytes": b"no picture", "path": None}] * 20
    (tmp_path / "hub").mkdir()
    data = datasets.Dataset.from_dict({"picture": pictures, "text": made_up(20)}, features=features)
    data.to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    options = "--tokenizer_name", tokenizer, "--max_seq_length", 4, "--output_dir", tmp_path / "out"
    main("--dataset_name", tmp_path / "hub", *options)
    assert all_documents(tmp_path / "out") == sorted(made_up(20))


def test_wikipedia_is_the_english_one_and_a_mirror_is_asked_in_place_of_the_hub(server, monkeypatch):
    args = create_data.parse_arguments([])
    assert create_data.data_set_of(args).reader.keywords == {"config": "20231101.en", "split": "train"}
    assert (args.vocab_size, args.max_seq_length) == (50265, 512)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server(answer_with(b"")))
    create_data.check_hub("a problem", "a remedy")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    with pytest.raises(UserError, match=r"a problem: http://127\.0\.0\.1:9 cannot be reached .*: a remedy"):
        create_data.check_hub("a problem", "a remedy")


def test_an_error_of_the_hub_keeps_its_remedy(hub, tmp_path, tokenizer):
    options = "--dataset_name", hub, "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out"
    with pytest.raises(UserError, match=r"latin.*greek.*--dataset_config_name"):
        main(*options, "--split", "test")
    with pytest.raises(UserError, match=r"test.*--split"):
        main(*options, "--dataset_config_name", "latin")
    shard = hub / "latin/test-00001-of-00002.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:50] + bytes(len(content) // 2) + content[50 + len(content) // 2 :])
    with pytest.raises(
        UserError, match=r"cannot read .*/hub after record \d+ .*check --dataset_config_name, --split and --text_column"
    ):
        main(*options, "--dataset_config_name", "latin", "--split", "test")


# ---------------------------------------------------------------- reproducible


def test_arrow_files_are_the_same_for_any_number_of_workers(tmp_path, tokenizer):
    text, digests = write(tmp_path / "a.jsonl", made_up(500, words=5000)), []
    assert text.stat().st_size > 5_000_000
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        options = "--tokenizer_name", tokenizer, "--preprocessing_num_workers", workers, "--output_dir", out
        result = script("--data_files", text, *options)
        assert result.returncode == 0, result.stderr
        digests.append(digest(out))
    assert digests[0] == digests[1]


def test_as_many_threads_encode_as_are_asked_for(create):
    create(made_up(20), "--preprocessing_num_workers", 3)
    assert os.environ["RAYON_NUM_THREADS"] == "3"  # which gigatoken reads when it is first used


def test_the_data_card_says_where_the_data_came_from(create, tmp_path, tokenizer):
    texts = made_up(100)
    card = card_of(create(texts, "--max_seq_length", 16))
    other = card_of(create([texts[0] + "!", *texts[1:]], "--max_seq_length", 16, name="other"))
    assert card["source"] == [str(tmp_path / "out.jsonl")]
    assert card["files"] != other["files"]
    assert card["arguments"]["tokenizer_name"] == str(tokenizer)
    digest = hashlib.sha256((tokenizer / "tokenizer.json").read_bytes()).hexdigest()
    assert card["files"]["tokenizer/tokenizer.json"]["sha256"] == digest


# ---------------------------------------------------------------- own tokenizer


def test_an_own_tokenizer_has_robertas_ids_and_the_size_asked_for(tokenizer):
    own = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert [own.id_to_token(i) for i in (0, 1, 2, 3, 399)] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert own.get_vocab_size() == len(own.get_vocab()) == 400
    assert own.encode(" <mask>", add_special_tokens=False).ids == [399]  # it takes the space before it
    assert own.encode("a").ids == [BOS, *own.encode("a", add_special_tokens=False).ids, EOS]


def test_it_is_told_where_a_text_has_fewer_tokens_to_learn_than_asked_for(create, capsys):
    out = create(["aaab aaab", "aaab"], "--tokenizer_name", "train", "--vocab_size", 300)
    learned = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json")).get_vocab_size()
    said = f"the text has no more to learn: {learned} tokens instead of --vocab_size 300\n"
    assert 262 <= learned < 300 and said in capsys.readouterr().out
    create(made_up(100), "--tokenizer_name", "train", "--vocab_size", 300, name="enough")
    assert "no more to learn" not in capsys.readouterr().out


def test_an_own_tokenizer_encodes_any_unicode_text_without_loss(tokenizer):
    own = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    every_fifth = "".join(chr(i) for i in range(0, 0x110000, 5) if not 0xD800 <= i < 0xE000)
    texts = [every_fifth, *(text for text in NASTY if "<mask>" not in text and not LONE_SURROGATE.search(text))]
    assert len(texts) == len(NASTY) - 2
    for text in texts:
        ids = own.encode(text, add_special_tokens=False).ids
        assert own.decode(ids, skip_special_tokens=False) == text
        assert UNK not in ids


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_an_own_tokenizer_learns_from_all_files(create, tmp_path, monkeypatch, packing):
    first, second = (["".join(pair) * 40] * 300 for pair in ("kq", "zx"))
    write(tmp_path / f"x/a.jsonl{packing}", first)
    write(tmp_path / f"x/b.jsonl{packing}", second)
    monkeypatch.setattr(create_data, "TRAINING_SAMPLE", 10_000)
    options = "--tokenizer_name", "train", "--vocab_size", 264
    vocab = json.loads((create(tmp_path / "x", *options) / "tokenizer/vocab.json").read_text())
    assert "kq" in vocab and "zx" in vocab


def test_of_text_without_spaces_a_tokenizer_learns_from_an_eighth_as_much(tmp_path, monkeypatch):
    """Each phrase of it is a word of its own, and takes memory."""
    monkeypatch.setattr(create_data, "TRAINING_SAMPLE", 60_000)
    sizes = {}
    for name, word in (("spaced", "मनुष्य "), ("unspaced", "人類社会，")):
        path = write(tmp_path / f"{name}.txt", [f"{i} " + word * 20 for i in range(1_000)])
        sample = create_data.first_documents(create_data.find_files([str(path)], "text", None, False))
        sizes[name] = len("".join(sample).encode())
    assert 59_000 < sizes["spaced"] < 61_000 and 7_000 < sizes["unspaced"] < 8_000


def test_a_file_whose_share_of_the_sample_is_used_up_is_not_opened_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(create_data, "TRAINING_SAMPLE", 100)
    first, second = write(tmp_path / "a.txt", ["one " * 100]), tmp_path / "b.txt"
    second.write_text("two")
    sources = create_data.find_files([str(first), str(second)], "text", "file", False)
    second.unlink()
    assert len([*create_data.first_documents(sources)]) == 1


def test_what_small_files_leave_of_the_tokenizers_sample_is_for_the_large_ones_in_any_order(tmp_path, monkeypatch):
    """Else a large file that comes first has but its equal share, and the tokenizer is learned from the small ones."""
    monkeypatch.setattr(create_data, "TRAINING_SAMPLE", 4_000)
    large = write(tmp_path / "large.txt", [f"{i:03d} word" for i in range(300)])
    small = [write(tmp_path / f"{i}.txt", ["small"]) for i in range(9)]
    for paths in ([large, *small], [*small, large]):
        sources = create_data.find_files([str(path) for path in paths], "text", "empty_line", False)
        sample = [*create_data.training_sample(sources, None)]
        assert sample.count("small") == 9 and len(sample) > 200
    # A part of the documents is the first ones, in the rows and in the sample.
    sources = create_data.find_files([str(large), *map(str, small)], "text", "empty_line", False)
    assert [*create_data.training_sample(sources, 3)] == ["000 word", "001 word", "002 word"]


def test_a_pipe_that_would_be_read_twice_is_refused(create, tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"--tokenizer_name train reads \S+a.txt twice, which a pipe does not allow"):
        create(tmp_path / "a.txt", "--tokenizer_name", "train")


def test_a_large_row_group_of_parquet_is_read_little_by_little(create, tmp_path, monkeypatch):
    texts, sizes = [random.Random(i).randbytes(2_000).hex() for i in range(1_000)], []
    small_pages = {"use_dictionary": False, "write_batch_size": 16}
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", **small_pages)

    class Recorded(io.FileIO):
        def read(self, size=-1):
            content = super().read(size)
            sizes.append(len(content))
            return content

    monkeypatch.setattr(create_data, "open_table", lambda source: Recorded(source.path))
    [source] = create_data.find_files([str(tmp_path / "a.parquet")], "text", None, False)
    assert [text.decode() for text in create_data.read_documents([source])] == texts
    assert sum(sizes) > 4_000_000 > 2 * max(sizes)


def test_the_ends_of_a_text_are_robertas_whatever_the_tokenizer_brings(create, tmp_path):
    """ByteLevelBPETokenizer.save() writes a tokenizer.json that adds none: what transformers computes would differ."""
    (tmp_path / "saved").mkdir()
    saved = ByteLevelBPETokenizer()
    saved.train_from_iterator(made_up(50), 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    saved.save(str(tmp_path / "saved/tokenizer.json"))
    assert saved.encode("ab").ids == saved.encode("ab", add_special_tokens=False).ids
    out = create(made_up(20), "--tokenizer_name", tmp_path / "saved")
    written = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    a, b = (written.encode(text, add_special_tokens=False).ids for text in "ab")
    assert written.encode("a", "b").ids == [BOS, *a, EOS, EOS, *b, EOS]
    assert set(written.encode("a", "b").type_ids) == {0}


def test_special_tokens_beside_vocab_json_keep_their_ids(create, tokenizer, tmp_path):
    (tmp_path / "slow").mkdir()
    shutil.copy(tokenizer / "merges.txt", tmp_path / "slow")
    vocab = json.loads((tokenizer / "vocab.json").read_text())
    vocab = [token for token in vocab if token not in create_data.SPECIAL]
    (tmp_path / "slow/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    added = {token: len(vocab) + i for i, token in enumerate(["<s>", "</s>", "<unk>", "<pad>", "<mask>"])}
    (tmp_path / "slow/added_tokens.json").write_text(json.dumps(added))
    out = create(made_up(20), "--tokenizer_name", tmp_path / "slow")
    written = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    assert {token: written.token_to_id(token) for token in added} == added


def test_a_tokenizer_loads_from_vocab_and_merges_too(create, tokenizer, tmp_path):
    (tmp_path / "pair").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, tmp_path / "pair")
    texts = [*made_up(20), *(text for text in NASTY[1:] if not LONE_SURROGATE.search(text))]
    assert digest(create(texts, "--tokenizer_name", tmp_path / "pair", name="pair_out")) == digest(create(texts))


def test_an_own_tokenizer_learns_from_no_more_than_max_documents(tmp_path):
    sources = create_data.find_files([str(write(tmp_path / "a.txt", made_up(9)))], "text", None, False)
    assert [*create_data.training_sample(sources, 3)] == made_up(9)[:3]


def test_an_own_tokenizer_learns_from_the_first_documents_of_the_hub(hub, monkeypatch):
    monkeypatch.setattr(create_data, "TRAINING_SAMPLE", 1000)
    args = create_data.parse_arguments(
        ["--dataset_name", str(hub), *"--dataset_config_name latin --split test".split()]
    )
    sample = [*create_data.training_sample(create_data.find_text(args)[0], None)]
    assert sample == [f"latin 0 {text}" for text in made_up(30)][: len(sample)]
    assert len("".join(sample[:-1])) < 1000 <= len("".join(sample))


# ---------------------------------------------------------------- errors

LINES = b'{"text": "one"}\n\n{"text": "two"}\n'
LONG_LINE = b'"one"\n"' + b"x" * (2**20 - 2) + "é".encode() + b"\xe9"  # a character across a megabyte's end
# What goes wrong: (files, of which the first is read unless there are arguments; arguments; parts of the message)
ERRORS = {
    "no such file": ({}, "--data_files absent.txt", ["there is nothing at absent.txt"]),
    "no file for a glob": ({}, "--data_files *.csv", ["there is nothing at *.csv"]),
    "unknown type": ({"a.docx": b"x"}, "", ["a.docx", ".parquet"]),
    "directory without text": ({"sub/a.png": b"x"}, "--data_files sub", ["sub", ".parquet"]),
    "not UTF-8": ({"a.txt": b"12345\n\n\xff"}, "", ["a.txt after record 1", "utf-8", "in UTF-8"]),
    "not UTF-8 after a megabyte": ({"a.jsonl": LONG_LINE}, "", ["a.jsonl after record 1", "in UTF-8"]),
    "character cut off": ({"a.txt": b"12345\n\nx\xe4\xb8"}, "", ["a.txt", "unexpected end of data", "in UTF-8"]),
    "a field too many": (
        {"a.csv": b"id,text\n1,one\n2,two,three\n"},
        "",
        ["a.csv after record 1", "the next one has not 2 fields"],
    ),
    "a quote left open": ({"a.csv": b'id,text\n1,one\n2,"two\n'}, "", ["a.csv", "record 1", "unexpected end of data"]),
    "a quote in a quote": ({"a.csv": b'text\n"a"b"\n'}, "", ["a.csv", "record 0", "expected after", "well-formed"]),
    "not UTF-8 in .gz": ({"a.csv.gz": gzip.compress(b"text\n\xff")}, "", ["a.csv.gz", "in UTF-8"]),
    "malformed line": ({"a.jsonl": LINES + b"{oops}\n"}, "", ["a.jsonl after record 2"]),
    "line cut off": ({"a.jsonl": LINES + b'{"text":\n' + LINES}, "", ["a.jsonl after record 2"]),
    "malformed while training": (
        {"b.jsonl": b"oops"},
        "--data_files b.jsonl --tokenizer_name train",
        ["b.jsonl after record 0"],
    ),
    "malformed array": ({"a.json": b'[{"text": "one"},\noops]'}, "", ["a.json", "line 2 "]),
    "text not a string": ({"a.jsonl": LINES + b'{"text": 5}'}, "", ["a.jsonl after record 2", "'text'"]),
    "text zero": ({"a.jsonl": LINES + b'{"text": 0}'}, "", ["a.jsonl after record 2", "'text'", "int"]),
    "text false": ({"a.jsonl": LINES + b'{"text": false}'}, "", ["a.jsonl after record 2", "'text'", "bool"]),
    "text a list": ({"a.jsonl": LINES + b'{"text": []}'}, "", ["a.jsonl after record 2", "'text'", "list"]),
    "record a number": ({"a.jsonl": LINES + b"0"}, "", ["a.jsonl after record 2", "int"]),
    "bytes, not text": (
        {"a.parquet": pandas.DataFrame({"text": [b"\xff"]}).to_parquet()},
        "",
        ["record 0", "in UTF-8"],
    ),
    "packed Parquet": ({"a.parquet.gz": b""}, "", ["a.parquet.gz"]),
    "truncated .xz": ({"a.txt.xz": lzma.compress(LINES)[:-9]}, "", ["a.txt.xz"]),
    "truncated .bz2": ({"a.txt.bz2": bz2.compress(LINES)[:-9]}, "", ["a.txt.bz2"]),
    "not an .xz": ({"a.txt.xz": LINES}, "", ["a.txt.xz"]),
    "thousands of columns": ({"a.jsonl": json.dumps({"c" * i: 1 for i in range(2000)}).encode()}, "", ["a.jsonl"]),
    "files and a data set": ({}, "--dataset_name demo", ["--data_files", "--dataset_name"]),
    "unknown separator": ({}, "--document_separator comma", ["--document_separator", "comma", "empty_line"]),
    "empty file to hold out": ({"b.txt": b" "}, "--validation_files b.txt", ["validation: 0 documents"]),
    "a field too many behind a mark": (
        {"a.tsv": b"id\ttext\n1\tone\n" + b'2\t"two"\n3\tthree\tfour\n'},
        "",
        ["a.tsv after record 2", "the next one has not 2 fields"],
    ),
    "surrogates in UTF-8": ({"a.jsonl": b'"one"\n"\xed\xa0\xbd"'}, "", ["a.jsonl after record 1", "in UTF-8"]),
    "a column that is not there, of no rows": (
        {"a.parquet": pandas.DataFrame({"body": pandas.Series([], dtype=str)}).to_parquet()},
        "",
        ["a.parquet", "no column 'text', but 'body'"],
    ),
    "too little drawn": (
        {"a.txt": "\n\n".join(made_up(200)).encode()},
        "--data_files a.txt --max_seq_length 512",
        ["validation: 2 documents", "set --document_separator, lower --max_seq_length, raise --validation_split_per"],
    ),
    "too little held out": (
        {"b.jsonl": b'"one"'},
        "--validation_files b.jsonl --max_documents 5 --max_seq_length 64",
        ["validation: 1 documents, 2 tokens, 0 rows, 3 dropped_tokens: lower --max_seq_length, or add text"],
    ),
    "too little text held out": (  # which another separator makes no longer
        {"b.txt": b"one"},
        "--validation_files b.txt --max_documents 5 --max_seq_length 64",
        ["validation: 1 documents", "0 rows", "dropped_tokens: lower --max_seq_length, or add text"],
    ),
    "packed and unpacked": (
        {"in/a.txt": b"text", "in/a.txt.gz": gzip.compress(b"text")},
        "--data_files in",
        ["in/a.txt and in/a.txt.gz are one text twice, by their names: give one of them"],
    ),
    "too little, and all held out": (  # joined to one stream, however it is parted
        {"a.txt": b"one"},
        "--data_files a.txt --validation_split_percentage 100 --max_seq_length 64",
        ["validation: 1 documents", "0 rows", "dropped_tokens: lower --max_seq_length, or add text"],
    ),
    "no URL": ({}, "--data_files https://[x/a.txt", ["https://[x/a.txt is no URL that can be read: give another ("]),
    "no place to write": ({}, "--output_dir github://x/y", ["--output_dir github://x/y: load_from_disk() would look"]),
    "no text": ({"a.txt": b" "}, "", ["train: 0 documents", "add text"]),
    "no corpus": (
        {"a.txt": b" ", "b.txt": b"two or three words"},
        "--data_files a.txt --validation_files b.txt",
        ["train: 0 documents"],
    ),
    "no corpus beside a named set": (
        {"a.txt": b" ", "b.txt": b"two or three words"},
        "--data_files a.txt --validation_files news=b.txt",
        ["train: 0 documents", "add text"],
    ),
    "no file to hold out": ({}, "--validation_files absent.txt", ["absent.txt"]),
    "truncated .gz": ({"a.txt.gz": gzip.compress(LINES)[:-9]}, "", ["a.txt.gz"]),
    "not a .gz": ({"a.txt.gz": LINES}, "", ["a.txt.gz"]),
    "corrupt .parquet": ({"a.parquet": b"PAR1 junk PAR1"}, "", ["a.parquet"]),
    "empty file": ({"a.txt": b""}, "", ["train: 0 documents"]),
    "only white space": ({"a.txt": b"\n \t\r\n\n"}, "", ["train: 0 documents"]),
    "too small for one row": (
        {},
        "--max_seq_length 512",
        ["validation: 1 documents", "0 rows", "lower --max_seq_length"],
    ),
    "only one document": (
        {"a.txt": b"\n\none\n\n \n"},
        "",
        ["all documents are held out for validation: the text is one document: set --document_separator, or add text"],
    ),
    "only one record": (
        {"a.jsonl": b'"one"'},
        "--data_files a.jsonl --max_documents 1000",
        ["all documents are held out for validation: the text is one document: add text"],
    ),
    "only one document, of lines": (
        {"a.txt": b"one\ntwo\n"},
        "--data_files a.txt --document_separator file --line_by_line True",
        ["all documents are held out for validation: the text is one document: set --document_separator, or add text"],
    ),
    "too little held out of much": (  # told before the corpus, and what is wrong with it, is read
        {"a.jsonl": b"{", "b.jsonl": b'"one"'},
        "--validation_files news=b.jsonl --max_seq_length 64",
        ["validation_news: 1 documents", "0 rows", "lower --max_seq_length, or add text"],
    ),
    "all drawn": (
        {"a.jsonl": b'"one"\n"two"\n"three"'},
        "--validation_split_percentage 99.999999",
        ["all documents are held out for validation: lower --validation_split_percentage, or add text"],
    ),
    "another file beside the text": (
        {"in/a.jsonl": b'{"text": "one"}', "in/meta.json": b'{"name": "in"}'},
        "--data_files in",
        ["in/meta.json after record 0 (no column 'text', but 'name')", "or move it elsewhere"],
    ),
    "a data set of its own": (
        {"in/a.txt": b"text", "in/d/data_card.json": b"{}", "in/d/dataset_dict.json": b"{}"},
        "--data_files in",
        ["in/d is a data set of create_data.py, and holds no text: give the text, without it"],
    ),
    "max_seq_length 3": ({}, "--max_seq_length 3", ["--max_seq_length", "from 4"]),
    "tokenizer directory empty": ({}, "--tokenizer_name {bad}/empty", ["/empty", "tokenizer.json"]),
    "tokenizer broken": ({}, "--tokenizer_name {bad}/broken", ["/broken"]),
    "tokenizer of another kind": ({}, "--tokenizer_name {bad}/words", ["/words is no byte-level BPE", "(WordLevel, "]),
    "tokenizer that splits otherwise": (
        {},
        "--tokenizer_name {bad}/otherwise",
        ["/otherwise is no byte-level BPE", "(BPE, Whitespace)"],
    ),
    "tokenizer with a normalizer": (
        {},
        "--tokenizer_name {bad}/normalizer",
        ["/normalizer has, unlike RoBERTa's, a normalizer: "],
    ),
    "ids with a gap": ({}, "--tokenizer_name {bad}/gap", ["/gap has, unlike RoBERTa's, gaps between its ids: "]),
    "token of a single word": ({}, "--tokenizer_name {bad}/single_word", ["an added token with single_word: "]),
    "token with rstrip": ({}, "--tokenizer_name {bad}/rstrip", ["an added token with rstrip: "]),
    "tokenizer that splits nothing": ({}, "--tokenizer_name {bad}/whole", ["a ByteLevel without use_regex: "]),
    "tokenizer is a file": ({"t.json": b"{}"}, "--tokenizer_name t.json", ["t.json is a file: give its directory"]),
    "special tokens in another file": (
        {},
        "--tokenizer_name {bad}/special",
        ["special/special_tokens_map.json adds tokens"],
    ),
    "ids that do not follow": ({}, "--tokenizer_name {bad}/ids", ["added_tokens.json has other ids than follow"]),
    "token of two words": ({}, "--tokenizer_name {bad}/two_words", ["an added token with white space in it: "]),
    "space before, in the configuration": (
        {},
        "--tokenizer_name {bad}/configured",
        ["has, unlike", "add_prefix_space"],
    ),
    "tokenizer of a data set": ({}, "--tokenizer_name {bad}/data", ["did you mean", "/data/tokenizer?"]),
    "a missing column": (
        {"a.jsonl": LINES + b'{"body": "x"}'},
        "",
        ["a.jsonl", "record 2", "no column 'text', but 'body'", "--text_column"],
    ),
    "tokenizer at random": ({}, "--tokenizer_name {bad}/dropout", ["gigatoken differs at"]),
    "tokenizer with a space before": ({}, "--tokenizer_name {bad}/prefix", ["/prefix", "add_prefix_space"]),
    "tokenizer without <mask>": ({}, "--tokenizer_name {bad}/maskless", ["/maskless", "no <mask> as special tokens"]),
    "hub tokenizer out of reach": ({}, "--tokenizer_name someone/something", ["someone/something", "`train`"]),
    "output is a mount point": ({}, "--output_dir /proc", ["/proc is a mount point: choose a directory below it"]),
    "output below a file": ({}, "--output_dir good.jsonl/out", ["good.jsonl/out"]),
    "output name too long": ({}, f"--output_dir {'n' * 300}", ["n" * 300]),
    "output is a file": ({}, "--output_dir good.jsonl", ["good.jsonl exists", "choose another"]),
    "output without a name": ({}, "--output_dir '' --overwrite_output_dir True", ["--output_dir"]),
    "output exists": (
        {"old/data_card.json": b'{"files": []}'},
        "--output_dir old",
        ["old exists", "--overwrite_output_dir True"],
    ),
    "output is not a data set": (
        {"old/dataset_dict.json": b""},
        "--output_dir old --overwrite_output_dir True",
        ["old exists", "no data set of create_data.py"],
    ),
    "yes is not a boolean": ({}, "--line_by_line Yes", ["--line_by_line", "'Yes'"]),
    "unknown argument": ({}, "--tokeniser_name x", ["--tokeniser_name"]),
}


@pytest.fixture(scope="module")
def bad(tokenizer, tmp_path_factory) -> pathlib.Path:
    """A folder of tokenizers that cannot be used."""
    folder, definition = tmp_path_factory.mktemp("bad"), json.loads((tokenizer / "tokenizer.json").read_text())
    vocab = definition["model"]["vocab"]
    unmasked = {token: i for token, i in vocab.items() if token != "<mask>"}
    specials = [token for token in definition["added_tokens"] if token["content"] != "<mask>"]
    maskless = {**definition, "added_tokens": specials, "model": {**definition["model"], "vocab": unmasked}}
    words = {**definition, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}}
    changed = {
        "normalizer": {**definition, "normalizer": {"type": "NFC"}},
        "dropout": {**definition, "model": {**definition["model"], "dropout": 0.5}},
        "gap": {**definition, "model": {**definition["model"], "vocab": {**vocab, "far": 500}}},
        "prefix": {**definition, "pre_tokenizer": {**definition["pre_tokenizer"], "add_prefix_space": True}},
    }
    token = {"id": 400, "special": True, "content": "<new>", "normalized": False}
    token.update(dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    token["single_word"] = True
    changed["single_word"] = {**definition, "added_tokens": [*definition["added_tokens"], token]}
    rstrip = token | {"rstrip": True, "single_word": False}
    changed["rstrip"] = {**definition, "added_tokens": [*definition["added_tokens"], rstrip]}
    changed["whole"] = {**definition, "pre_tokenizer": {**definition["pre_tokenizer"], "use_regex": False}}
    two_words = token | {"content": "<two words>", "single_word": False}
    changed["two_words"] = {**definition, "added_tokens": [*definition["added_tokens"], two_words]}
    for name, file, content in (
        *((name, "tokenizer.json", json.dumps(content)) for name, content in changed.items()),
        ("empty", "README.md", "nothing"),
        ("broken", "tokenizer.json", "{oops}"),
        ("maskless", "tokenizer.json", json.dumps(maskless)),
        ("words", "tokenizer.json", json.dumps(words)),
        ("otherwise", "tokenizer.json", json.dumps({**definition, "pre_tokenizer": {"type": "Whitespace"}})),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(content)
    shutil.copytree(tokenizer, folder / "data/tokenizer")
    shutil.copytree(tokenizer, folder / "configured")
    (folder / "configured/tokenizer.json").unlink()
    (folder / "configured/tokenizer_config.json").write_text('{"add_prefix_space": true}')
    for name, file, content in (
        ("special", "special_tokens_map.json", {"additional_special_tokens": ["<x>"]}),
        ("ids", "added_tokens.json", {"<mask>": 500}),
    ):
        (folder / name).mkdir()
        for part in ("vocab.json", "merges.txt"):
            shutil.copy(tokenizer / part, folder / name)
        (folder / name / file).write_text(json.dumps(content))
    return folder


@pytest.fixture
def mistake(tmp_path, tokenizer, bad, monkeypatch):
    """Makes the files of a mistake, in the current directory; returns the arguments of the run."""

    def make(name: str) -> list:
        files, arguments, _ = ERRORS[name]
        write(tmp_path / "good.jsonl", made_up(50))
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(content)
        monkeypatch.chdir(tmp_path)
        source = next(iter(files)) if files and not arguments else "good.jsonl"
        defaults = f"--data_files {source} --tokenizer_name {tokenizer} --output_dir out --max_seq_length 8 "
        return shlex.split(defaults + arguments.format(bad=bad))

    return make


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_is_one_line_that_names_it_and_leaves_nothing(mistake, tmp_path, name):
    arguments = mistake(name)
    before = contents(tmp_path)
    with pytest.raises((UserError, OSError)) as error:
        main(*arguments)
    message = str(error.value)
    assert [part for part in ERRORS[name][2] if part not in message] == [], message
    # A UserError shows line ends escaped, and cuts what is longer than 1,000. (One quotes a text, which may have some.)
    assert ("\\n" not in message or name == "tokenizer at random") and "characters left out" not in message
    assert before and contents(tmp_path) == before


@pytest.mark.parametrize("name", ["malformed line", "unknown argument"])
def test_a_mistake_ends_the_script_with_status_2_and_without_a_traceback(mistake, tmp_path, name):
    result = script(*mistake(name), cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    assert all(part in result.stderr for part in ERRORS[name][2])


@pytest.mark.parametrize("limit", [100, 2000, 5000])  # the layout, the rows, tokenizer.json
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, tokenizer, limit):
    """A limit on the size of a file stands in for the disk's."""
    text, before = write(tmp_path / "a.jsonl", made_up(10)), ["a.jsonl"]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    options = "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out", "--max_seq_length", 8
    result = script("--data_files", text, *options, first=limited)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1 and "File too large" in result.stderr
    assert os.listdir(tmp_path) == before


# ---------------------------------------------------------------- overwriting


class Overwrite:
    """A data set that stands alone in a folder, and the arguments that overwrite it with another."""

    def __init__(self, folder: pathlib.Path, tokenizer: pathlib.Path):
        self.saved, self.out = folder / "saved", folder / "alone/out"
        defaults = ["--tokenizer_name", tokenizer, "--validation_split_percentage", 10, "--max_seq_length", 64]
        old, new = (write(folder / f"{seed}.jsonl", made_up(200, words=1000, seed=seed)) for seed in (0, 1))
        self.arguments = [*defaults, "--overwrite_output_dir", "True", "--output_dir", self.out, "--data_files", new]
        main(*self.arguments)
        self.new_digest = digest(self.out)
        main(*defaults, "--data_files", old, "--output_dir", self.saved)
        self.old_digest = digest(self.saved)
        self.restore()

    def restore(self) -> None:
        shutil.rmtree(self.out.parent)
        shutil.copytree(self.saved, self.out)

    def check_after_kill(self, expected: set, slash: str = "") -> None:
        """What is there is whole, a run that may not overwrite cleans up, and one that may succeeds."""
        assert not self.out.exists() or digest(self.out) in expected
        with contextlib.suppress(UserError):  # it refuses where there is a data set
            main(*self.arguments, "--overwrite_output_dir", "False", "--output_dir", f"{self.out}{slash}")
        assert os.listdir(self.out.parent) == ["out"] and digest(self.out) in expected
        main(*self.arguments)
        assert os.listdir(self.out.parent) == ["out"] and digest(self.out) == self.new_digest


@pytest.fixture
def overwrite(tmp_path, tokenizer):
    return Overwrite(tmp_path, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("there_before", [False, True])
def test_a_killed_run_leaves_what_was_there_or_the_new_data_set(overwrite, there_before):
    def run(kill_after: float | None, writing: bool) -> tuple:
        """Kills a run so long after its start or first write; returns its status and when it started, wrote, ended."""
        listing, times, silent = os.listdir(overwrite.out.parent), [time.monotonic()], subprocess.DEVNULL
        process = subprocess.Popen(command(*overwrite.arguments), cwd=ROOT, stdout=silent, stderr=silent)
        while writing and process.poll() is None and os.listdir(overwrite.out.parent) == listing:
            time.sleep(0.001)
        times.append(time.monotonic())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill_after)
        process.kill()
        return process.wait(), *times, time.monotonic()

    status, start, first_writing, end = run(None, writing=True)
    assert status == 0 and digest(overwrite.out) == overwrite.new_digest
    expected = {overwrite.new_digest, overwrite.old_digest} if there_before else {overwrite.new_digest}
    draw, killed = random.Random(there_before), 0
    for i in range(KILLS):
        overwrite.restore()
        if not there_before:
            shutil.rmtree(overwrite.out)
        writing = i % 4 > 0  # before the first writing little can go wrong
        killed += run(draw.uniform(0, end - (first_writing if writing else start)), writing)[0] == -signal.SIGKILL
        overwrite.check_after_kill(expected)
    assert killed > KILLS // 10


def test_a_directory_that_another_process_writes_is_refused_and_left_alone(overwrite):
    """The other one is stopped within its work; a killed one frees the directory."""
    wait = "import create_data, time; create_data.write_rows = lambda *arguments: time.sleep(1000)"
    first = f"{wait}; import utils, sys; utils.command_line(lambda: create_data.main(sys.argv[1:]))"
    other = subprocess.Popen(command(*overwrite.arguments, first=first), cwd=ROOT)
    while other.poll() is None and not list(overwrite.out.parent.glob("out.being_written/new")):
        time.sleep(0.01)
    assert other.poll() is None
    before = os.listdir(overwrite.out.parent)
    for _ in range(2):
        with pytest.raises(UserError, match=r" is in use, or no directory: wait, or choose another"):
            main(*overwrite.arguments)
    assert os.listdir(overwrite.out.parent) == before
    assert digest(overwrite.out) == overwrite.old_digest
    other.kill()
    other.wait()
    overwrite.check_after_kill({overwrite.old_digest})


@pytest.mark.slow
def test_two_runs_at_once_leave_the_data_set_of_one(tmp_path, tokenizer):
    """RUNS pairs (3 unless set) start at random distances, with different text and tokenizers, into one directory."""
    draw, refused, texts = random.Random(0), 0, {}
    for i in range(int(os.environ.get("RUNS", "3"))):
        out, processes = tmp_path / f"{i}/out", []
        for seed in range(2):
            texts[seed] = made_up(400, words=2000, seed=seed)
            source = write(tmp_path / f"{seed}.jsonl", texts[seed])
            options = "--tokenizer_name", "train", "--vocab_size", 300 + 50 * seed, "--max_seq_length", 16
            arguments = "--data_files", source, "--output_dir", out, "--overwrite_output_dir", "True", *options
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command(*arguments), cwd=ROOT, **silent))
            time.sleep(draw.choice([0, draw.uniform(0, 0.1), draw.uniform(0, 3)]))
        ends = [(process.communicate()[1], process.returncode) for process in processes]
        for error, status in ends:
            assert status == 0 or (status == 2 and "is in use" in error), error
        refused += sum(status == 2 for _, status in ends)
        assert any(status == 0 for _, status in ends)
        card = card_of(out)
        assert digest(out) and os.listdir(out.parent) == ["out"]
        number = int("1.jsonl" in card["source"][0])
        own = expected_stream(out / "tokenizer", [texts[number][0]])
        assert stream_of(out, "train")[: len(own)] == own
        assert card["arguments"]["vocab_size"] == 300 + 50 * number
    print(f"{refused} runs were refused")


ACT_AT_RENAME = """
import os
renames, rename = 0, os.rename
def rename_or_act(source, target):
    global renames
    renames += source == {out!r} or target == {out!r}
    if renames == {number}:
        {action}
    rename(source, target)
os.rename = os.replace = rename_or_act
"""


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "action, status",
    [
        ("os.kill(os.getpid(), 9)", -9),
        ("raise OSError(28, 'No space left on device')", 2),
        ("raise KeyboardInterrupt", 130),
    ],
    ids=["killed", "failed", "interrupted"],
)
def test_an_overwrite_that_ends_at_a_rename_leaves_the_old_data_set(overwrite, number, action, status):
    """Where the process could not clean up, the next run does, also when it names the directory with a slash."""
    acting = ACT_AT_RENAME.format(out=str(overwrite.out), number=number, action=action)
    result = script(*overwrite.arguments, first=acting)
    assert result.returncode == status, result.stderr
    if status > 0:
        assert os.listdir(overwrite.out.parent) == ["out"] and digest(overwrite.out) == overwrite.old_digest
    overwrite.check_after_kill({overwrite.old_digest}, slash="/" * (number - 1))


@pytest.mark.parametrize("status", ["None", "0", "True", "1"])
def test_a_scripts_status_is_what_its_main_returns(status):
    code = f"import utils; utils.command_line(lambda: {status})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert run.returncode == (status in ("True", "1"))


def test_ctrl_c_waits_for_no_slow_source(overwrite):
    """As a stalled network is: the reader sleeps behind the first document."""
    slow = """
import create_data, time, utils
read = create_data.READERS[".jsonl"]
def read_slowly(*arguments):
    records = read(*arguments)
    yield next(records)
    print("waiting", flush=True)
    time.sleep(1000)
create_data.READERS[".jsonl"] = read_slowly
utils.command_line(create_data.main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *map(str, overwrite.arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "waiting\n" in iter(process.stdout.readline, "")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "interrupted\n"
    assert os.listdir(overwrite.out.parent) == ["out"] and digest(overwrite.out) == overwrite.old_digest


def test_an_overwrite_that_fails_leaves_the_old_data_set(overwrite, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{oops}\n')
    before = contents(overwrite.out.parent)
    with pytest.raises(UserError, match=r"bad\.jsonl after record 1"):
        main(*overwrite.arguments, "--data_files", tmp_path / "bad.jsonl")
    assert contents(overwrite.out.parent) == before


def test_an_output_that_is_a_link_is_overwritten_each_time(overwrite, tmp_path):
    link = tmp_path / "links/out"
    link.parent.mkdir()
    link.symlink_to(overwrite.out)
    for _ in range(2):
        main(*overwrite.arguments, "--output_dir", link)
        assert digest(link) == overwrite.new_digest and os.listdir(link.parent) == ["out"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_copy_that_the_user_put_aside_stays(overwrite, there_before):
    aside = overwrite.out.with_name("out.old")
    shutil.move(overwrite.out, aside)
    if there_before:
        shutil.copytree(aside, overwrite.out)
    main(*overwrite.arguments)
    assert digest(aside) == overwrite.old_digest and digest(overwrite.out) == overwrite.new_digest


# ---------------------------------------------------------------- everything that is given is read, or named


def wikiextractor(documents: list, form: str) -> bytes:
    """What WikiExtractor writes for articles: (title, text)."""
    escaped = [(title, html.escape(text)) for title, text in documents]
    if form == "json":
        return "".join(
            json.dumps({"id": "1", "revid": "2", "url": "https://x?curid=1", "title": title, "text": text}) + "\n"
            for title, text in escaped
        ).encode()
    return "".join(f'<doc id="1" url="u" title="{title}">\n{text}\n\n</doc>\n' for title, text in escaped).encode()


def test_all_types_below_a_directory_are_read(create, tmp_path, capsys):
    texts = made_up(60)
    parts = [texts[6 * i : 6 * i + 6] for i in range(10)]
    names = "a.txt b.jsonl.zst c.tsv d.csv.xz e.parquet f.object.json g.json h/part.txt.bz2".split()
    for name, part in zip(names, parts):
        write(tmp_path / "x" / name, part)
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": parts[8]})).save_to_disk(str(tmp_path / "x/saved"))
    (tmp_path / "x/AA").mkdir()
    (tmp_path / "x/AA/wiki_00").write_bytes(wikiextractor([("t", text) for text in parts[9]], "doc"))
    (tmp_path / "x/notes.md").write_text("two")
    (tmp_path / "x/image.png").write_bytes(b"x" * 10)
    (tmp_path / "x/SHA256SUMS.txt").write_text("0123")
    (tmp_path / "x/dataset_infos.json").write_text('{"default": {}}')
    write(tmp_path / "x/.ipynb_checkpoints/a-checkpoint.txt", parts[0])
    out = create(tmp_path / "x")
    assert all_documents(out) == sorted(texts)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "left out" in line)
    assert "3 files of 17 bytes" in line and "notes.md" in line and "image.png" in line and "SHA256SUMS.txt" in line
    write(tmp_path / ".hidden/a.txt", texts)  # given by its name it is read
    assert all_documents(create(tmp_path / ".hidden", name="hidden")) == sorted(texts)


def test_what_is_left_out_may_not_be_larger_than_what_is_read_unless_it_is_said(create, tmp_path):
    write(tmp_path / "x/README.txt", made_up(20))
    (tmp_path / "x/corpus.bin").write_bytes(b"x" * 100_000)
    with pytest.raises(UserError, match=r"1 file of 100,000 bytes .*corpus\.bin.*--leave_out_other_files True"):
        create(tmp_path / "x")
    assert all_documents(create(tmp_path / "x", "--leave_out_other_files", "True")) == sorted(made_up(20))
    by_name = sorted((tmp_path / "x").glob("*"))  # as a shell hands over x/*
    with pytest.raises(UserError, match=r"nothing to read at \S+corpus.bin: give .*, or --leave_out_other_files True"):
        create(*by_name, name="by_name")
    options = "--leave_out_other_files", "True"
    assert all_documents(create(*by_name, *options, name="by_name")) == sorted(made_up(20))
    with pytest.raises(UserError, match=r"nothing to read at \S+corpus.bin: give .*wiki_00$"):
        create(tmp_path / "x/corpus.bin", *options, name="none")
    (tmp_path / "empty").mkdir()  # as a mount that is missing
    with pytest.raises(UserError, match=r"nothing to read at .*empty"):
        create(tmp_path / "empty", *by_name, *options, name="none")


def test_a_glob_names_what_it_leaves_out_too(create, tmp_path, capsys):
    write(tmp_path / "x/a.txt", made_up(20))
    (tmp_path / "x/b.docx").write_bytes(b"x")
    create(tmp_path / "x/*")
    assert "b.docx" in capsys.readouterr().out


def test_a_linked_directory_is_read_once(create, tmp_path):
    write(tmp_path / "elsewhere/a.txt", made_up(20))
    (tmp_path / "x").mkdir()
    for name in ("link", "same"):
        (tmp_path / "x" / name).symlink_to(tmp_path / "elsewhere")
    assert all_documents(create(tmp_path / "x")) == sorted(made_up(20))


def test_a_data_set_of_save_to_disk_is_read_whole_or_refused(create, tmp_path, capsys):
    texts = made_up(40)
    saved = tmp_path / "saved"
    data = datasets.Dataset.from_dict({"title": texts, "text": texts})
    data.save_to_disk(str(saved), num_shards=4)
    (saved / "cache-0123456789abcdef.arrow").write_bytes((saved / "data-00000-of-00004.arrow").read_bytes())
    assert all_documents(create(saved)) == sorted(texts)
    assert all_documents(create(saved / "*.arrow", name="glob")) == sorted(texts)
    whole = (saved / "data-00002-of-00004.arrow").read_bytes()
    (saved / "data-00002-of-00004.arrow").write_bytes(whole[:-8])  # ends where a batch does
    with pytest.raises(UserError, match=r"data-00002-of-00004\.arrow .*end"):
        create(saved, name="cut")
    (saved / "data-00002-of-00004.arrow").write_bytes(whole)
    data.save_to_disk(str(saved), num_shards=3)  # which leaves the four where they are
    with pytest.raises(UserError, match=r"holds data-00000-of-00004\.arrow, which its state\.json does not name"):
        create(saved, name="twice")
    for stale in saved.glob("*-of-00004.arrow"):
        stale.unlink()
    assert all_documents(create(saved, name="anew")) == sorted(texts)
    splits = datasets.DatasetDict(train=data, test=data.filter(lambda row: False))
    splits.save_to_disk(str(tmp_path / "splits"))
    assert all_documents(create(tmp_path / "splits", name="no_test")) == sorted(texts)
    data.save_to_disk(str(saved), num_shards=4)
    for stale in saved.glob("*-of-00003.arrow"):
        stale.unlink()
    (saved / "data-00002-of-00004.arrow").unlink()
    with pytest.raises(UserError, match=r"lacks data-00002-of-00004\.arrow"):
        create(saved, name="missing")
    (saved / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json, which save_to_disk\(\) writes beside rows, is damaged"):
        create(saved, name="untold")
    (saved / "state.json").write_text('{"step": 3}')  # of another program
    assert set(all_documents(create(saved, name="others"))) < set(texts)


def test_a_file_of_arrow_is_read_whole_or_refused(create, tmp_path):
    """In IPC's other form, with the places of its batches at the end."""
    texts = made_up(40)
    table = pyarrow.table({"text": texts})
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=15)
    assert all_documents(create(tmp_path / "a.arrow")) == sorted(texts)
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-8])
    with pytest.raises(UserError, match=r"cannot read .*a\.arrow"):
        create(tmp_path / "a.arrow", name="cut")


def test_text_between_the_articles_of_wikiextractor_is_refused(create, tmp_path):
    article = wikiextractor([("t", "one")], "doc")
    (tmp_path / "wiki_00").write_bytes(article + b"stray\n" + article)
    with pytest.raises(UserError, match=r"wiki_00 after record 1 .*'stray' stands outside <doc \.\.\.> and </doc>"):
        create(tmp_path / "wiki_00")


def test_what_map_left_in_a_cache_of_load_dataset_is_not_read(create, tmp_path):
    texts = made_up(40)
    data = datasets.load_dataset(
        "json", data_files=str(write(tmp_path / "a.jsonl", texts)), cache_dir=str(tmp_path / "c")
    )
    data["train"].map(lambda row: {"text": row["text"].upper()})
    assert len([*(tmp_path / "c").rglob("cache-*.arrow")]) == 1
    assert all_documents(create(tmp_path / "c")) == sorted(texts)


def test_a_hubs_cache_is_read_though_each_file_stands_there_under_two_names(create, tmp_path):
    (tmp_path / "hub/snapshots/1").mkdir(parents=True)
    (tmp_path / "hub/blobs").mkdir()
    write(tmp_path / "a.jsonl", made_up(40)).rename(tmp_path / "hub/blobs/0123")
    (tmp_path / "hub/snapshots/1/a.jsonl").symlink_to("../../blobs/0123")
    (tmp_path / "hub/refs").mkdir()
    (tmp_path / "hub/refs/main").write_text("1")  # with this, more bytes would be left out than read
    assert all_documents(create(tmp_path / "hub")) == sorted(made_up(40))


def test_results_that_datasets_keeps_of_one_data_set_are_not_taken_for_another(create):
    """It knows them by the data's fingerprint."""
    first, same, other = (
        datasets.load_from_disk(str(create(made_up(40, seed=seed), name=name)))["train"]
        for name, seed in (("first", 0), ("same", 0), ("other", 1))
    )
    assert first._fingerprint == same._fingerprint != other._fingerprint


@pytest.mark.parametrize("form", ["json", "doc"])
@pytest.mark.parametrize("packing", ["", ".bz2"])
def test_wikiextractors_files_are_read_without_tags_and_escapes(create, tmp_path, capsys, form, packing):
    texts = ['a < b & "c" > d', "R&amp;D's &nbsp; &lt;doc&gt;", "plain", "two\n\nparagraphs"]
    (tmp_path / "AA").mkdir()
    content = wikiextractor([("a title", text) for text in texts], form)
    (tmp_path / f"AA/wiki_00{packing}").write_bytes(PACKINGS["bz2"].compress(content) if packing else content)
    assert all_documents(create(tmp_path / "AA")) == sorted(texts)
    assert "1 file read as WikiExtractor's" in capsys.readouterr().out
    if not packing and form == "doc":
        (tmp_path / "AA/wiki_00").write_bytes(content[:-8])
        with pytest.raises(UserError, match=r"wiki_00 after record 3 .*no </doc>"):
            create(tmp_path / "AA", name="cut")


@pytest.mark.parametrize("form", ["json", "doc"])
def test_wikiextractors_files_joined_to_a_text_file_are_read_alike(create, tmp_path, form):
    texts = ["a < b", "two\n\nparagraphs", "plain"]
    (tmp_path / "wiki.txt").write_bytes(wikiextractor([("a title", text) for text in texts], form))
    assert all_documents(create(tmp_path / "wiki.txt")) == sorted(texts)


def test_joined_files_of_wikiextractor_are_plain_text_if_told_so_and_refused_if_cut(create, tmp_path, capsys):
    texts = ["a < b", "two\n\nparagraphs", "plain"]
    joined = tmp_path / "wiki.txt"
    joined.write_bytes(wikiextractor([("a title", text) for text in texts], "doc"))
    create(joined)
    printed = capsys.readouterr().out
    assert "1 file read as WikiExtractor's" in printed and "--document_separator" not in printed
    plain = all_documents(create(joined, "--document_separator", "line", name="plain"))
    assert {'<doc id="1" url="u" title="a title">', "a &lt; b", "</doc>"} < set(plain)
    whole = joined.read_bytes()
    joined.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"wiki.txt after record 2 .*no </doc>.*give --document_separator if"):
        create(joined, name="cut")
    for cut in (1, 9):  # before the end of an article, and within its text: of one of several parts
        joined.write_bytes(whole[: whole.index(b"</doc>") - cut] + whole)
        with pytest.raises(UserError, match=r"wiki.txt after record 0 .*one before has no </doc>"):
            create(joined, name="cut")


@pytest.mark.parametrize(
    "value",
    [
        {"text": "one"},
        {"title": "x", "text": ["one"]},
        {"text": {"0": "one"}},
        {"version": "1", "data": [{"text": "one"}]},
    ],
    ids=str,
)
@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "several"])
def test_a_json_file_that_is_one_object_is_read(create, tmp_path, value, indent):
    (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
    write(tmp_path / "b.txt", ["two"])
    assert all_documents(create(tmp_path / "a.json", tmp_path / "b.txt")) == ["one", "two"]


def test_a_list_beside_the_text_of_a_json_object_is_no_text(create, tmp_path):
    (tmp_path / "a.json").write_text('{"title": "A", "body": "one", "tags": ["two", "three"]}')
    write(tmp_path / "b.txt", ["four", "five"])
    with pytest.raises(UserError, match=r"a.json .*no column 'text', but 'title', 'body', 'tags'"):
        create(tmp_path / "a.json", tmp_path / "b.txt")
    for tags in ([], [{"name": "two"}]):  # no list of records that this file stands for
        (tmp_path / "a.json").write_text(json.dumps({"title": "A", "body": "one", "tags": tags}))
        with pytest.raises(UserError, match=r"a.json .*no column 'text'"):
            create(tmp_path / "a.json", tmp_path / "b.txt")
    (tmp_path / "a.json").write_text('{"id": 1, "text": {"lang": "en", "content": "one"}}')
    with pytest.raises(UserError, match=r"a.json .*dict"):
        create(tmp_path / "a.json", tmp_path / "b.txt")
    (tmp_path / "a.json").write_text('{"text": null, "tags": ["two", "three"]}')
    assert all_documents(create(tmp_path / "a.json", tmp_path / "b.txt")) == ["five", "four"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_records_without_text_are_counted(create, tmp_path, capsys, name):
    path = write(tmp_path / name, ["one", "", "two", None, " \n", "three"])
    assert all_documents(create(path)) == ["one", "three", "two"]
    assert "3 records without text (null or blank) left out\n" in capsys.readouterr().out
    create(write(tmp_path / "b.txt", ["one", "\n\n", "two"]), name="lines")
    assert "without text" not in capsys.readouterr().out


def test_a_json_file_may_hold_a_text_a_line(create, tmp_path):
    (tmp_path / "a.json").write_text('"one"\n\n"two"\n{"text": "three"}\n')
    assert all_documents(create(tmp_path / "a.json")) == ["one", "three", "two"]


LINE_ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


@pytest.mark.parametrize("ends", LINE_ENDS)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "array.json", "csv", "tsv", "parquet"])
def test_line_ends_mean_the_same_in_every_reader(create, tmp_path, kind, ends):
    texts = ["one\ntwo", "three", "four\nfive\nsix"]
    raw = [text.replace("\n", LINE_ENDS[ends]) for text in texts]
    path = write(tmp_path / f"a.{kind}", raw)
    if kind in ("txt", "csv", "tsv", "jsonl"):  # and between the records
        path.write_bytes(re.sub(rb"\r\n|\r|\n", b"\n", path.read_bytes()).replace(b"\n", LINE_ENDS[ends].encode()))
    expected = create(texts, "--line_by_line", "True", "--max_seq_length", 16, name="expected")
    assert digest(create(path, "--line_by_line", "True", "--max_seq_length", 16)) == digest(expected)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_line_ends_are_found_wherever_blocks_end(monkeypatch, tmp_path, block):
    monkeypatch.setattr(create_data, "BLOCK", block)
    text = b"\xef\xbb\xbfa\r\n\r\nbc\r\rdd\n\r\n\re\r\n"
    (tmp_path / "a.txt").write_bytes(text)
    [source] = create_data.find_files([str(tmp_path / "a.txt")], "text", None, False)
    assert [*create_data.lines_of(source)] == b"a\n\nbc\n\ndd\n\n\ne\n".split(b"\n")


def test_two_columns_of_one_name_are_refused(create, tmp_path):
    table = pyarrow.table([["one"], ["two"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "a.csv").write_text("text,id,text\none,1,two\n")
    (tmp_path / "a.tsv").write_text("text\tid\ttext\none\t1\ttwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "text": "two"}\n')
    (tmp_path / "a.json").write_text('[{"text": "one", "text": "two"}]')
    for kind in ("csv", "tsv", "jsonl", "json", "parquet", "arrow"):
        with pytest.raises(UserError, match=rf"a\.{kind} .*several columns are called 'text': rename"):
            create(tmp_path / f"a.{kind}")
    for name, text in (
        ("b.json", '{"data": [{"text": "one"}], "data": [{"text": "two"}]}'),
        ("c.json", '{"text": {"0": "one", "0": "two"}}'),
        ("d.jsonl", '{"text": "one", "t\\u0065xt": "two"}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name} .*several columns are called .*: rename"):
            create(tmp_path / name)


def test_members_of_one_name_beside_the_text_lose_nothing(create, tmp_path):
    records = (
        '{"text": "one", "id": 1, "id": 2}',
        '{"x": {"id": 1, "id": 2}, "text": "two"}',
        '{"id": 1, "id": 2, "text": "thr\\u00e9e", "x": {"text": "no"}}',
    )
    (tmp_path / "a.jsonl").write_text("\n".join(records))
    assert all_documents(create(tmp_path / "a.jsonl")) == ["one", "thrée", "two"]
    for name in ("array.json", "array.jsonl"):
        (tmp_path / name).write_text(f"[{','.join(records)}]")
        assert all_documents(create(tmp_path / name, name=f"of_{name}")) == ["one", "thrée", "two"]


def test_byte_order_marks_of_files_that_were_joined_are_no_text(create, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf"one"\n\xef\xbb\xbf"two"\n')
    assert all_documents(create(tmp_path / "a.jsonl")) == ["one", "two"]


def test_local_names_that_look_like_urls_are_local(create, tmp_path, monkeypatch):
    texts = made_up(40)
    for i, name in enumerate(["std.txt", "std.txt::vector.txt", "file:x.txt", "http:/y.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n\n".join(texts[10 * i : 10 * i + 10]))
    monkeypatch.chdir(tmp_path)
    assert all_documents(create("std.txt", "std.txt::vector.txt", "file:x.txt", "http://y.txt")) == sorted(texts)


@pytest.mark.parametrize("name", ["a::b", "file:x", "memory://x", "~/x"])
def test_an_output_directory_that_could_not_be_loaded_is_refused(create, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--output_dir .*choose a plain name"):
        create(write(tmp_path / "a.txt", made_up(9)), "--output_dir", name)
    assert os.listdir(tmp_path) == ["a.txt"]


# ---------------------------------------------------------------- archives: read whole, or refused by name

KINDS_OF_STREAMS = ["gz", "bz2", "xz", "zst"]


def raw_frame(text: bytes, window_log: int) -> bytes:
    """A frame of zstd, uncompressed, as `zstd --long` begins one that is read from a pipe."""
    block = (len(text) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + block + text


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # zstd's frame without text; pzstd puts one before each
WHOLE = {
    "one stream": lambda kind, first, second: first + second,
    "padding": lambda kind, first, second: first + bytes(8) + second + bytes(4) if kind in ("gz", "xz") else None,
    "skippable frames": lambda kind, first, second: SKIPPABLE + first + SKIPPABLE + second if kind == "zst" else None,
    "a long window": lambda kind, first, second: first + raw_frame(b"last", 31) if kind == "zst" else None,
}
DAMAGED = {
    "nothing": lambda kind, first, second: b"",
    "cut": lambda kind, first, second: first[:-9],
    "cut to three bytes": lambda kind, first, second: first[:3],
    "second stream cut": lambda kind, first, second: first + second[: len(second) // 2],
    "second stream cut to three bytes": lambda kind, first, second: first + second[:3],
    "second stream damaged at its start": lambda kind, first, second: first + b"\1" + second[1:],
    "damaged within": lambda kind, first, second: first[:60] + bytes([first[60] ^ 255]) + first[61:] + second,
    "something behind": lambda kind, first, second: first + second + b"something else",
    "checksum missing": lambda kind, first, second: first + second[:-4],
    "checksum wrong": lambda kind, first, second: first + second[:-4] + bytes(4),
}


def streams(kind: str, *parts: bytes) -> list:
    return [PACKINGS[kind].compress(part) for part in parts]


@pytest.mark.parametrize(
    "kind, form", [(kind, form) for form in WHOLE for kind in KINDS_OF_STREAMS if WHOLE[form](kind, b"1", b"2")]
)
def test_an_archive_of_several_streams_is_read_whole(create, tmp_path, kind, form):
    texts = made_up(200)
    first, second = streams(kind, "\n\n".join([*texts, ""]).encode(), b"last")
    content = WHOLE[form](kind, first, second)
    (tmp_path / f"a.txt.{kind}").write_bytes(content)
    out = create(tmp_path / f"a.txt.{kind}")
    assert all_documents(out) == sorted([*texts, "last"])
    assert card_of(out)["inputs"]["train"] == [
        {"path": str(tmp_path / f"a.txt.{kind}"), "bytes": len(content), "documents": 201}
    ]


@pytest.mark.parametrize("kind", KINDS_OF_STREAMS)
@pytest.mark.parametrize("form", DAMAGED)
def test_an_archive_that_is_cut_or_damaged_is_refused_by_name(create, tmp_path, kind, form):
    first, second = streams(kind, "\n\n".join([*made_up(200), ""]).encode(), "\n\n".join(made_up(30, seed=1)).encode())
    (tmp_path / f"a.txt.{kind}").write_bytes(DAMAGED[form](kind, first, second))
    with pytest.raises(UserError, match=rf"cannot read .*a\.txt\.{kind} after record \d+ \(.+\)"):
        create(tmp_path / f"a.txt.{kind}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS_OF_STREAMS)
def test_what_a_few_bytes_unpack_to_comes_in_blocks(tmp_path, kind):
    packed = PACKINGS[kind].compress(b"\0" * 30_000_000)
    (tmp_path / f"a.txt.{kind}").write_bytes(packed)
    [source] = create_data.find_files([str(tmp_path / f"a.txt.{kind}")], "text", None, False)
    peak, size = 0, 0
    for block in create_data.text_blocks(source):
        peak, size = max(peak, len(block)), size + len(block)
    assert size == 30_000_000 and peak <= create_data.BLOCK and source.bytes_read == len(packed)


def test_a_damaged_page_of_parquet_is_refused(create, tmp_path):
    table = pyarrow.table({"text": made_up(500)})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", **options)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[3000] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet"):
        create(tmp_path / "a.parquet")


def test_the_last_lines_say_how_much_was_read(create, tmp_path, capsys):
    first, second = write(tmp_path / "a.txt", made_up(40)), write(tmp_path / "b.jsonl.gz", made_up(30, seed=1))
    out = create(first, second)
    size = first.stat().st_size + second.stat().st_size
    assert capsys.readouterr().out.splitlines()[-2:] == [f"read: {size:,} bytes of 2 files", f"written: {out}"]
    assert [entry["documents"] for entry in card_of(out)["inputs"]["train"]] == [40, 30]
    create(first, second, "--max_documents", 9, name="part")
    assert f"read: {first.stat().st_size:,} bytes of 1 file (of 2 given)\n" in capsys.readouterr().out


def test_what_was_read_for_the_tokenizer_alone_is_not_said_to_be_in_the_rows(tmp_path, capsys, monkeypatch):
    """Learning it takes a share of each file, and so goes further than --max_documents does."""
    monkeypatch.setattr(create_data, "TRAINING_SAMPLE", 4000)
    first, second = write(tmp_path / "a.txt", made_up(50)), write(tmp_path / "b.txt", made_up(50))
    out = tmp_path / "out"
    options = "--tokenizer_name", "train", "--vocab_size", 400, "--max_seq_length", 32, "--max_documents", 60
    main("--data_files", first, second, "--output_dir", out, *options)
    assert [source["documents"] for source in card_of(out)["inputs"]["train"]] == [50, 10]
    main("--data_files", first, second, "--output_dir", tmp_path / "fewer", *options[:-1], 40)
    shown = capsys.readouterr().out
    assert f"read: {first.stat().st_size:,} bytes of 1 file (of 2 given)\n" in shown
    assert "1 text file read with" in shown
    assert [source["documents"] for source in card_of(tmp_path / "fewer")["inputs"]["train"]] == [40, 0]


def test_a_json_file_of_one_text_is_one_document(tmp_path, create):
    """And not as many as the text has letters."""
    first, second = write(tmp_path / "a.txt", made_up(50)), tmp_path / "b.json"
    second.write_text(json.dumps("The whole text of a small file."))
    card = card_of(create(first, second))
    assert [source["documents"] for source in card["inputs"]["train"]] == [50, 1]


# ---------------------------------------------------------------- URLs


@pytest.fixture
def server(monkeypatch):
    """Serves what a test says, on this machine alone; returns its URL. Requests can reach it, and nothing else."""

    def connect(self, address):
        assert address[0] == "127.0.0.1", address
        return REAL_CONNECT(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", REAL_GETADDRINFO)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(create_data, "SILENCE", 20)
    servers = []

    def serve(answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            def log_message(self, *arguments):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        serving = {"poll_interval": 0.01}  # seconds that shutdown() may wait, and not half a one
        threading.Thread(target=servers[-1].serve_forever, kwargs=serving, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for each in servers:
        each.shutdown()
        each.server_close()


def test_a_url_is_asked_for_as_it_is_stored(create, tmp_path, server):
    """A server that packs what it sends would hand out something else than the file."""

    def answer(handler):
        packs = handler.headers.get("Accept-Encoding") != "identity"
        answer_with(gzip.compress(b"one\n\ntwo") if packs else b"one\n\ntwo")(handler)

    assert all_documents(create(f"{server(answer)}/a.txt")) == ["one", "two"]


def answer_with(content: bytes, pause: float = 0, length: int | None = None, status: int = 200):
    """Sends the content in ten parts; `length` is what is promised, -1: nothing."""

    def answer(handler):
        handler.send_response(status)
        if length != -1:
            handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        part = len(content) // 10 + 1
        with contextlib.suppress(OSError):
            for start in range(0, len(content), part):
                handler.wfile.write(content[start : start + part])
                handler.wfile.flush()
                time.sleep(pause)

    return answer


@pytest.mark.parametrize("kind", ["txt", "jsonl.gz", "parquet", "csv.zst"])
@pytest.mark.parametrize("length", [None, -1])
def test_a_url_is_read_by_the_type_of_its_path(create, tmp_path, server, kind, length):
    """Also where the server sends slowly, tells no size and knows no ranges."""
    content = write(tmp_path / f"a.{kind}", made_up(40)).read_bytes()
    # Ten parts, for which more time passes in all than the server may be silent for
    url = server(answer_with(content, pause=0.15 if kind == "txt" and length else 0, length=length))
    out = create(f"{url}/data/a.{kind}?download=true&name=b.exe#top")
    assert all_documents(out) == sorted(made_up(40))
    assert card_of(out)["inputs"]["train"][0]["bytes"] == (tmp_path / f"a.{kind}").stat().st_size


@pytest.mark.parametrize("kind", ["txt", "txt.zst", "parquet"])
def test_a_url_that_ends_early_is_refused(create, tmp_path, server, kind):
    content = write(tmp_path / f"a.{kind}", made_up(40)).read_bytes()
    url = server(answer_with(content, length=len(content) + 1000))
    with pytest.raises(UserError, match=rf"cannot read http.*a\.{kind} after record \d+ \(.+\).* download it first$"):
        create(f"{url}/a.{kind}")


def test_a_silent_server_and_an_http_error_are_named(create, server, monkeypatch):
    monkeypatch.setattr(create_data, "SILENCE", 1)
    url = server(answer_with(b"one\n\ntwo\n\n" * 20, pause=3))
    with pytest.raises(UserError, match=r"cannot read http.*a\.txt .*timed out.*check the address and the network"):
        create(f"{url}/a.txt")
    url = server(answer_with(b"sorry", status=503))
    with pytest.raises(UserError, match=r"cannot read http.*a\.txt .*HTTP status 503 Service Unavailable"):
        create(f"{url}/a.txt")


# ---------------------------------------------------------------- held out, and left out of training


def test_what_is_held_out_is_left_out_of_training(create, tmp_path, capsys):
    texts = made_up(40)
    write(tmp_path / "c/t.txt", texts[:30])
    held_out = write(tmp_path / "c/v.txt", texts[30:])
    out = create(tmp_path / "c", "--validation_files", held_out)
    assert documents_of(out) == {"train": texts[:30], "validation": texts[30:]}
    assert "1 file of --data_files held out" in capsys.readouterr().out
    copy = write(tmp_path / "copy.jsonl", [texts[3], texts[7], "another"])
    documents = documents_of(create(tmp_path / "c/t.txt", "--validation_files", copy, name="copied"))
    assert documents["train"] == [text for i, text in enumerate(texts[:30]) if i not in (3, 7)]
    assert "2 documents that stand in --validation_files, too: left out of train\n" in capsys.readouterr().out


def test_files_called_like_held_out_text_are_named_where_they_are_trained_on(create, tmp_path, capsys, monkeypatch):
    for name, text in (("train", "one"), ("val", "two"), ("latest", "three"), ("test/more", "four")):
        write(tmp_path / f"c/{name}.txt", [text])
    assert all_documents(create(tmp_path / "c")) == ["four", "one", "three", "two"]
    places = f"{tmp_path / 'c/test/more.txt'}, {tmp_path / 'c/val.txt'}"
    assert f"2 files called like held-out text, and trained on: {places}; --val" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "c/val.txt", "c/test", name="meant")
    create(tmp_path / "c", "--validation_files", tmp_path / "c/val.txt", tmp_path / "c/test", name="held_out")
    assert "called like" not in capsys.readouterr().out


def test_equal_lists_are_refused(create, tmp_path):
    path = write(tmp_path / "c/a.txt", made_up(40))
    with pytest.raises(UserError, match="the same files"):
        create(tmp_path / "c", "--validation_files", path)
    with pytest.raises(UserError, match=r"train: 0 documents"):
        create(path, "--validation_files", write(tmp_path / "copy.txt", made_up(40)))


def test_a_name_of_a_validation_set_that_cannot_be_one_is_told(create, tmp_path):
    news = write(tmp_path / "news.txt", made_up(9))
    with pytest.raises(
        UserError, match=r"--validation_files de-news=.*news\.txt: a name is of letters from a to z, di"
    ):
        create(made_up(30), "--validation_files", f"de-news={news}")
    with pytest.raises(UserError, match=r"there is nothing at de-news=absent\.txt"):
        create(made_up(30), "--validation_files", "de-news=absent.txt")


def test_what_is_read_where_no_file_is_given_is_told_at_the_start(hub, tmp_path, tokenizer, capsys):
    held_out = write(tmp_path / "held_out.txt", made_up(9))
    arguments = [
        "--dataset_name",
        hub,
        "--dataset_config_name",
        "latin",
        "--split",
        "test",
        "--validation_files",
        held_out,
    ]
    main(*arguments, "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out", "--max_seq_length", 4)
    assert capsys.readouterr().out.startswith(f"reading --dataset_name {hub} (--data_files reads files instead)\n")


def test_validation_sets_with_names_are_splits_of_their_own(create, tmp_path, capsys):
    texts = made_up(60)
    news, wiki, more = (write(tmp_path / f"{i}.txt", texts[10 * i : 10 * i + 10]) for i in range(3))
    corpus = write(tmp_path / "corpus.txt", texts[30:])
    equal = write(tmp_path / "year=2020/a.txt", ["equal"])  # a path, no name
    out = create(corpus, "--validation_files", f"wiki={wiki}", f"news={news}", f"news={more}", equal)
    data, card = datasets.load_from_disk(str(out)), card_of(out)
    # "validation", then as they were given: the first one decides which checkpoint is the best
    assert list(data) == ["train", "validation", "validation_wiki", "validation_news"] == list(card["splits"])
    assert [card["splits"][split]["documents"] for split in data] == [30, 1, 10, 20]
    tokenizer = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    found = tokenizer.decode(stream_of(out, "validation_news"), skip_special_tokens=False)
    assert found.removesuffix("</s>").split("</s>") == [*texts[:10], *texts[20:30]]
    assert re.search("^validation_wiki, first row: '<s>", capsys.readouterr().out, re.MULTILINE)

    alone = create(corpus, "--validation_files", f"news={news}", name="alone")
    assert list(datasets.load_from_disk(str(alone))) == ["train", "validation_news"]
    beside = create(corpus, "--validation_files", f"news={news}", "--validation_split_percentage", 20, name="beside")
    assert list(datasets.load_from_disk(str(beside))) == ["train", "validation", "validation_news"]
    assert card_of(beside)["splits"]["validation"]["documents"] > 1


# ---------------------------------------------------------------- flags


PAIRED = {  # values that change what is written, alone or beside others
    "data_files": "{tmp}/corpus",
    "validation_files": "{tmp}/held_out.jsonl",
    "dataset_name": "{tmp}/hub",
    "dataset_config_name": "greek",
    "split": "test",
    "document_separator": "line",
    "text_column": "title",
    "max_documents": "20",
    "validation_split_percentage": "30",
    "seed": "1",
    "tokenizer_name": "train",
    "vocab_size": "300",
    "max_seq_length": "6",
    "line_by_line": "True",
    "leave_out_other_files": "True",
}


@pytest.fixture
def outcome(tmp_path, tokenizer, hub, monkeypatch):
    """What is written, or the refusal, with these flags beside --tokenizer_name and --output_dir, one run for each."""
    write(tmp_path / "corpus/a.txt", [text.replace(" ", "\n", 3) for text in made_up(40)])
    write(tmp_path / "corpus/b.jsonl", made_up(40, seed=1))
    (tmp_path / "corpus/c.bin").write_bytes(bytes(100_000))
    write(tmp_path / "small/b.jsonl", made_up(40, seed=1))
    write(tmp_path / "held_out.jsonl", made_up(10, seed=2))
    known = {}

    def run(**flags) -> str:
        key = tuple(sorted(flags.items()))
        if key not in known:
            arguments = {"tokenizer_name": tokenizer, "output_dir": tmp_path / f"out{len(known)}", "max_seq_length": 4}
            if not {"data_files", "dataset_name"} & set(flags):
                is_hubs = {"dataset_config_name", "split"} & set(flags)
                name, value = ("dataset_name", hub) if is_hubs else ("data_files", tmp_path / "small")
                arguments[name] = value
            arguments |= {name: value.format(tmp=tmp_path) for name, value in flags.items()}
            try:
                main(*itertools.chain(*((f"--{name}", value) for name, value in arguments.items())))
                files = sorted(arguments["output_dir"].glob("*/*.arrow"))
                known[key] = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
            except UserError as error:
                known[key] = f"refused: {error}"
        return known[key]

    return run


@pytest.mark.slow
def test_two_flags_both_act_or_are_refused(outcome):
    idle = []
    for one, other in itertools.combinations(PAIRED, 2):
        both = outcome(**{one: PAIRED[one], other: PAIRED[other]})
        if both.startswith("refused: "):
            assert "--" in both, both
        elif both == outcome(**{one: PAIRED[one]}) or both == outcome(**{other: PAIRED[other]}):
            idle.append((one, other))
    # What is left out is not in the rows, so --leave_out_other_files acts where it is needed alone.
    assert [pair for pair in idle if "leave_out_other_files" not in pair] == []
    assert outcome(data_files=PAIRED["data_files"]).startswith("refused: ")
    assert not outcome(data_files=PAIRED["data_files"], leave_out_other_files="True").startswith("refused: ")


UNUSED = [
    "--data_files a.txt --split train",
    "--data_files a.txt --dataset_config_name 20231101.de",
    "--dataset_name demo --split train",
    "--dataset_name demo --text_column body",
    "--dataset_name demo --document_separator line",
    "--dataset_name demo --leave_out_other_files=True",
    "--data_files a.txt --validation_files b.txt --validation_split_percentage 5",
    "--data_files a.txt --validation_files b.txt --seed 7",
    "--data_files a.txt --validation_split_percentage 100 --seed 7",
    "--data_files a.txt --tokenizer_name roberta-base --vocab_size 3000",
]


@pytest.mark.parametrize("arguments", UNUSED)
def test_a_flag_that_would_do_nothing_is_refused_by_name(arguments):
    flag = arguments.split()[-2 if "=" not in arguments else -1].partition("=")[0]
    with pytest.raises(UserError, match=rf"{flag} does nothing here \(.+\): leave it out"):
        create_data.parse_arguments(arguments.split())


def test_flags_for_other_types_of_files_are_refused(create, tmp_path):
    text, records = write(tmp_path / "a.txt", made_up(20)), write(tmp_path / "b.jsonl", made_up(20))
    with pytest.raises(UserError, match="--text_column is for files with columns"):
        create(text, "--text_column", "body")
    with pytest.raises(UserError, match="--document_separator is for text files"):
        create(records, "--document_separator", "line")


@pytest.mark.parametrize(
    "flag",
    [
        "max_seq_length",
        "vocab_size",
        "max_documents",
        "preprocessing_num_workers",
        "seed",
        "validation_split_percentage",
    ],
)
@pytest.mark.parametrize("value", ["-1", "1" + "0" * 30, "nan", "1e400", "9" * 5000])
def test_an_absurd_number_is_one_line(flag, value):
    with pytest.raises(UserError, match=f"--{flag}") as error:
        create_data.parse_arguments([f"--{flag}", value])
    assert len(str(error.value)) <= 1000


def test_a_mistyped_flag_names_the_nearest():
    with pytest.raises(UserError, match=r"--tokeniser_name.*did you mean --tokenizer_name\?"):
        create_data.parse_arguments(["--tokeniser_name", "x"])
    with pytest.raises(UserError, match=r"--data_file=x.*did you mean --data_files\?"):
        create_data.parse_arguments(["--data_file=x"])


def test_a_long_message_is_cut_and_says_so(create, tmp_path):
    with pytest.raises(UserError, match=r"\[\.\.\. [\d,]+ characters left out \.\.\.\]") as error:
        create_data.parse_arguments(["--" + "x" * 50_000])
    assert len(str(error.value)) <= 1000 and str(error.value).endswith("(--help lists the arguments)")
    with pytest.raises(UserError, match=r"there is nothing at a\\nb") as error:
        create("a\nb")
    assert str(error.value).count("\\n") == 1  # that of the name


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("mistake", [False, True])
def test_closed_output_ends_no_run_and_hides_no_error(tmp_path, tokenizer, closed, mistake):
    text = write(tmp_path / "a.txt", made_up(50))
    options = "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out", "--max_seq_length", 8
    run = shlex.join(map(str, command("--data_files", text, *options, *(["--split", "x"] if mistake else []))))
    done = subprocess.run(["bash", "-c", f"{run} {closed}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (2 if mistake else 0), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if mistake and closed != ">&- 2>&-" and "<" not in closed:
        assert "--split does nothing here" in done.stdout + done.stderr
    if not mistake:
        assert digest(tmp_path / "out")


def test_a_panic_of_a_library_is_one_line():
    code = (
        "import utils\nclass PanicException(BaseException): pass\ndef main(): raise PanicException('capacity overflow')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nutils.command_line(main)"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: capacity overflow\n")


def test_a_buffer_holds_a_bounded_number_of_pieces():
    documents = (("train", b"x") for _ in range(350_000))
    sizes = [len(buffer) for _, buffer in create_data.fill_buffers(documents, line_by_line=False)]
    assert sum(sizes) == 350_000 and max(sizes) == 100_000


# ---------------------------------------------------------------- nothing of others is lost


@pytest.mark.parametrize("where", ["notes.txt", "train/notes.txt", "ckp/paddle_100/model.safetensors"])
def test_what_create_data_did_not_write_is_never_replaced(create, tmp_path, where):
    path = write(tmp_path / "a.txt", made_up(20))
    out = create(path)
    create(path, "--overwrite_output_dir", "True")
    (out / where).parent.mkdir(parents=True, exist_ok=True)
    (out / where).write_text("precious")
    before = contents(out)
    with pytest.raises(UserError, match=rf"{os.path.basename(where)} would be lost.*move it"):
        create(path, "--overwrite_output_dir", "True")
    assert contents(out) == before


def test_a_link_to_a_directory_is_not_replaced_either(create, tmp_path):
    path = write(tmp_path / "a.txt", made_up(20))
    (create(path) / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(UserError, match="out/elsewhere would be lost"):
        create(path, "--overwrite_output_dir", "True")


def test_a_new_directory_has_nobody_elses_modes(tmp_path):
    """As a user without root's rights, whose files are copies of what is write-protected."""
    home = pathlib.Path(tempfile.mkdtemp())
    if os.getuid() == 0:
        os.chown(home, 65534, 65534)
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.umask(0o022)
            os.chdir("/")
            for _ in range(2):  # the second one replaces the first
                with utils.atomic_directory(str(home / "out")) as folder:
                    below = pathlib.Path(folder, "below")
                    below.mkdir()
                    for name, mode in (("a", 0o444), ("b", 0o600)):  # a copy's; as safetensors writes
                        (below / name).write_text(name)
                        (below / name).chmod(mode)
                    below.chmod(0o555)
                    pathlib.Path(folder).chmod(0o555)
            modes = {path.name: path.stat().st_mode & 0o777 for path in [home / "out", *(home / "out").rglob("*")]}
            status = modes != {"out": 0o755, "below": 0o755, "a": 0o644, "b": 0o644}
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(home) == ["out"]
    shutil.rmtree(home)


# ---------------------------------------------------------------- tokens


def test_special_tokens_that_stand_in_the_text_are_counted(create, capsys):
    texts = [*made_up(20), "a <s> b </s></s> c", "one <mask> more", "last"]
    create(texts, "--validation_split_percentage", 0)
    printed = capsys.readouterr().out
    assert "train: 4 special tokens, as <s> or </s>, stand in the text itself\n" in printed
    create(texts, "--line_by_line", "True", "--max_seq_length", 32, "--validation_split_percentage", 0, name="lines")
    assert "train: 4 special tokens," in capsys.readouterr().out
    create(made_up(20), name="plain")
    assert "special tokens" not in capsys.readouterr().out


def test_the_first_row_of_each_split_is_shown(create, capsys):
    create(["First of all.\x1b[31m", "second"], "--max_seq_length", 64, "--line_by_line", "True")
    printed = capsys.readouterr().out
    assert "train, first row: '<s>First of all.\\x1b[31m</s>'\n" in printed
    assert "validation, first row: '<s>second</s>'\n" in printed


def with_added_tokens(tokenizer: pathlib.Path, folder: pathlib.Path, **options) -> pathlib.Path:
    """A copy of tokenizer.json with <doc> and [X] added."""
    changed = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    changed.add_special_tokens(["<doc>", AddedToken("[X]", special=True, lstrip=True)])
    if options:
        changed.add_tokens([AddedToken("covidine", **options)])
    folder.mkdir()
    changed.save(str(folder / "tokenizer.json"))
    return folder


ADDED_TEXTS = ["a <doc> b", "a<doc>b", "x  <doc>  y <doc>", "<doc>", "a [X] b\n[X]\n c", "a <mask> b", "<s>d</s> <doc>"]


def test_an_added_special_token_is_special_for_every_reader(create, tokenizer, tmp_path):
    pytest.importorskip("paddlenlp")
    from paddlenlp.transformers import AutoTokenizer

    name = with_added_tokens(tokenizer, tmp_path / "added")
    out = create([*ADDED_TEXTS, *made_up(20)], "--tokenizer_name", name, "--max_seq_length", 8)
    saved, paddles = (
        Tokenizer.from_file(str(out / "tokenizer/tokenizer.json")),
        AutoTokenizer.from_pretrained(str(out / "tokenizer")),
    )
    special = [saved.token_to_id(token) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<doc>", "[X]")]
    assert sorted(paddles.all_special_ids) == sorted(special) and len(set(special)) == 7
    for text in ADDED_TEXTS:
        assert paddles(text)["input_ids"][1:-1] == saved.encode(text, add_special_tokens=False).ids, text
    train = datasets.load_from_disk(str(out))["train"]
    ids, mask = np.array(train["input_ids"][:]), np.array(train["special_tokens_mask"][:])
    assert np.array_equal(mask, np.isin(ids, special)) and (ids == saved.token_to_id("<doc>")).any()

    # What `utils.py` exports differs in the class's name, which transformers calls otherwise.
    python = os.environ.get("TORCH_PYTHON")
    if not python:
        pytest.skip("TORCH_PYTHON names no Python with transformers")
    config = json.loads((out / "tokenizer/tokenizer_config.json").read_text())
    (out / "tokenizer/tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "RobertaTokenizer"}))
    code = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "ids = [t(text)['input_ids'][1:-1] for text in json.loads(sys.argv[2])];"
        "print(json.dumps([sorted(t.all_special_ids), ids]))"
    )
    done = subprocess.run(
        [python, "-c", code, out / "tokenizer", json.dumps(ADDED_TEXTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found_special, found = json.loads(done.stdout.splitlines()[-1])
    assert found_special == sorted(special)
    assert found == [saved.encode(text, add_special_tokens=False).ids for text in ADDED_TEXTS]


def test_a_tokenizer_whose_added_tokens_not_every_reader_finds_is_refused(create, tokenizer, tmp_path):
    name = with_added_tokens(tokenizer, tmp_path / "added", normalized=False)
    with pytest.raises(UserError, match=r"'covidine' were added by add_tokens\(\).*add_special_tokens"):
        create(made_up(20), "--tokenizer_name", name)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / file, fewer)
    (fewer / "added_tokens.json").write_text('{"covidine": 400}')
    with pytest.raises(UserError, match=r"added_tokens\.json adds tokens"):
        create(made_up(20), "--tokenizer_name", fewer)


def test_the_remedy_for_added_tokens_works(create, tokenizer, tmp_path):
    changed = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    changed.add_special_tokens(["covidine"])
    (tmp_path / "special").mkdir()
    changed.save(str(tmp_path / "special/tokenizer.json"))
    out = create([*made_up(20), "covidine helps"], "--tokenizer_name", tmp_path / "special")
    assert "covidine helps" in all_documents(out)


def test_a_directory_with_berts_vocabulary_names_train(create, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(UserError, match=r"bert holds vocab\.txt \(BERT's WordPiece\).*--tokenizer_name train"):
        create(made_up(20), "--tokenizer_name", tmp_path / "bert")


def test_a_tokenizer_is_learned_from_endless_words_in_seconds(create, capsys):
    draw = random.Random(0)
    dna = ["".join(draw.choices("ACGT", k=300_000)) for _ in range(3)]
    start = time.monotonic()
    out = create([*dna, "last"], "--tokenizer_name", "train", "--vocab_size", 1000)
    assert time.monotonic() - start < 60
    assert "900 words are cut after 1,000 characters" in capsys.readouterr().out
    train = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json")).decode(stream_of(out, "train"))
    assert train.startswith(dna[0])  # the rows have the words whole


def test_ordinary_text_of_any_script_is_not_cut_for_the_tokenizer(tmp_path):
    texts = [SCRIPTS * 50, "天地玄黃宇宙洪荒。" * 2000, "word " * 5000, "https://a.b/" + "c-d_e/" * 100]
    sources = create_data.find_files([str(write(tmp_path / "a.jsonl", texts))], "text", None, False)
    assert [*create_data.training_sample(sources, None)] == [text.strip("\n") for text in texts]


# ---------------------------------------------------------------- no network, other languages


def test_without_a_network_it_is_said_at_once(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"--dataset_name wikimedia/wikipedia: .*no network.*--data_files"):
        main("--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match=r"tokenizer roberta-base: .*no network.*`train`.*directory"):
        main("--dataset_name", "demo", "--output_dir", tmp_path / "out")
    assert time.monotonic() - start < 20  # the hub's own client tries for half a minute


def test_another_languages_wikipedia_with_a_tokenizer_of_its_own_is_one_command(monkeypatch, tmp_path):
    folder = tmp_path / "wikimedia/wikipedia"
    for config, word in (("20231101.en", "the"), ("20231101.de", "größer")):
        write(folder / f"{config}/train-00000-of-00001.parquet", [f"{word} {text}" for text in made_up(60)])
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
        for name in ("20231101.en", "20231101.de")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    monkeypatch.chdir(tmp_path)
    german = "--dataset_name wikimedia/wikipedia --dataset_config_name 20231101.de --tokenizer_name train"
    main(*german.split(), "--vocab_size", 500, "--max_seq_length", 4, "--output_dir", "out")
    assert all_documents(tmp_path / "out") == sorted(f"größer {text}" for text in made_up(60))
    own = Tokenizer.from_file("out/tokenizer/tokenizer.json")
    assert len(own.encode("größer", add_special_tokens=False).ids) == 1


# ---------------------------------------------------------------- the script


def test_a_finished_run_ends_with_0_whatever_the_terminal_does(tmp_path, tokenizer):
    text = write(tmp_path / "a.jsonl", ["Ελληνικά 中文 👩 " * 20] * 30)
    options = "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out", "--max_seq_length", 8
    run = command("--data_files", text, *options, "--overwrite_output_dir", "True")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(run, cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 0 and "written: " in done.stdout and not done.stderr, done.stderr
    for unbuffered in ("", "1"):
        read, written = os.pipe()
        os.close(read)
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(run, cwd=ROOT, env=environment, stdout=written, stderr=subprocess.PIPE, text=True)
        os.close(written)
        assert (done.returncode, done.stderr) == (0, "")
    assert digest(tmp_path / "out")


def test_the_script_does_not_import_paddle_and_its_help_not_even_datasets(tmp_path, tokenizer):
    texts = write(tmp_path / "a.jsonl", made_up(50))
    options = "--tokenizer_name", tokenizer, "--output_dir", tmp_path / "out", "--max_seq_length", 8
    for arguments, loaded in (("--help",), False), (("--data_files", texts, *options), True):
        result = script(*arguments, first=SAY_MODULES)
        modules = set(result.stderr.split())
        assert result.returncode == 0 and "numpy" in modules
        assert "paddle" not in modules and "paddlenlp" not in modules
        assert ("datasets" in modules) == loaded


def test_every_flag_is_in_the_help_and_is_read(capsys):
    source = (ROOT / "create_data.py").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "add"]
    flags = {call.args[0].value for call in calls}
    page = set(re.findall(r"^--(?=\w)\w+", PAGE, re.MULTILINE)) | {"--tokenizer_name"}
    assert len(page) == 7 and page <= flags
    with pytest.raises(SystemExit) as end:
        main("--help")
    assert end.value.code == 0
    described = re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE)
    assert flags == set(described) - {"--help"}
    assert [flag for flag in flags if not re.search(rf"\bargs\.{flag[2:]}\b", source)] == []
