"""DataCollatorMLM masks as RoBERTa does, and a row's mask depends on (seed, epoch, row) alone."""

import math
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pytest
from conftest import create

import utils
from utils import (
    IGNORE_INDEX,
    DataCollatorMLM,
    TokenRows,
    UpdateSampler,
    evaluation_batches,
    open_data_set,
    yardsticks,
)

VOCAB, BOS, PAD, EOS, MASK = 1000, 0, 1, 2, 999


class Ids(SimpleNamespace):
    """The least that a tokenizer must be asked for."""

    def __len__(self) -> int:
        return self.size


TOKENIZER = Ids(mask_token_id=MASK, pad_token_id=PAD, size=VOCAB, all_special_ids=[BOS, PAD, EOS, 3, MASK])


def example(row: int, length: int = 128, epoch: int = 0) -> dict:
    ids = np.random.default_rng(row).integers(4, MASK, size=length).astype(np.uint16)
    ids[0], ids[-1] = BOS, EOS
    return {"input_ids": ids, "special_tokens_mask": np.isin(ids, [BOS, EOS]), "epoch": epoch, "row": row}


def test_15_percent_are_chosen_and_replaced_80_10_10_and_specials_never():
    examples = [example(row) for row in range(1000)]
    batch = DataCollatorMLM(TOKENIZER, seed=1)(examples)
    original, special = (np.stack([e[name] for e in examples]) for name in ("input_ids", "special_tokens_mask"))
    chosen = batch["labels"] != IGNORE_INDEX
    assert np.sum(~special) > 100_000
    assert not np.any(chosen & special)
    assert np.array_equal(batch["input_ids"][~chosen], original[~chosen])
    assert np.array_equal(batch["labels"][chosen], original[chosen])
    assert abs(chosen.sum() / np.sum(~special) - 0.15) < 0.01
    replaced = batch["input_ids"][chosen]
    stays, masked = replaced == original[chosen], replaced == MASK
    assert abs(masked.mean() - 0.8) < 0.01
    assert abs(stays.mean() - 0.1) < 0.01
    random_ids = replaced[~stays & ~masked]
    assert abs(len(random_ids) / len(replaced) - 0.1) < 0.01
    assert not np.isin(random_ids, TOKENIZER.all_special_ids).any()
    assert abs(random_ids.mean() / VOCAB - 0.5) < 0.02  # evenly over the vocabulary
    assert len(np.unique(random_ids)) > 0.7 * VOCAB


def test_whole_words_are_masked_on_real_text(data_dir, tmp_path):
    from paddlenlp import transformers

    text, tokenizer_dir = data_dir / "wiki" / "valid.txt", data_dir / "roberta-base"
    data = create(text, tmp_path / "data", "--tokenizer_name", str(tokenizer_dir), "--max_seq_length", "512")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(data / "tokenizer"))
    rows = TokenRows(open_data_set(str(data))["train"])
    examples = [rows[0, i] for i in range(len(rows))]
    collator = DataCollatorMLM(tokenizer, seed=1, whole_words=True)
    batch = collator(examples)
    original, special = (np.stack([e[name] for e in examples]) for name in ("input_ids", "special_tokens_mask"))
    chosen = batch["labels"] != IGNORE_INDEX
    assert np.sum(~special) > 300_000 and not np.any(chosen & special)
    assert abs(chosen.sum() / np.sum(~special) - 0.15) < 0.005

    begins = np.stack([collator.words.begins(ids) for ids in original])
    continues = ~begins[:, 1:] & ~special[:, 1:] & ~special[:, :-1]  # the word of the position before
    assert continues.sum() > 20_000 and np.array_equal(chosen[:, 1:][continues], chosen[:, :-1][continues])
    # In English a word begins at a token with a space, behind a line end, and at a mark or behind one.
    tokens = tokenizer.convert_ids_to_tokens(list(range(50265)))
    spaced = np.array([token.startswith("Ġ") for token in tokens])[original]
    letters = np.array([token.lstrip("Ġ").isalpha() for token in tokens])[original]
    is_ascii = np.array([token.lstrip("Ġ").isascii() for token in tokens])[original]
    assert begins[spaced & ~special].all()
    joined = letters[:, 1:] & ~spaced[:, 1:] & letters[:, :-1] & ~special[:, 1:] & ~special[:, :-1]
    joined &= is_ascii[:, 1:] & is_ascii[:, :-1]
    assert joined.sum() > 20_000 and not begins[:, 1:][joined].any()
    starts = ~special
    starts[:, 1:] &= ~continues
    goes_on = np.pad(continues, ((0, 0), (0, 1)))
    for words in (starts & goes_on, starts & ~goes_on):  # those of several tokens and of one
        assert words.sum() > 20_000 and abs(chosen[words].mean() - 0.15) < 0.005

    replaced = batch["input_ids"][chosen]
    stays, masked = replaced == original[chosen], replaced == tokenizer.mask_token_id
    assert abs(masked.mean() - 0.8) < 0.01 and abs(stays.mean() - 0.1) < 0.01
    assert not np.isin(replaced[~stays & ~masked], tokenizer.all_special_ids).any()
    is_mask = batch["input_ids"] == tokenizer.mask_token_id
    pairs = chosen[:, 1:] & continues  # neighbours in a word: each token's fate is drawn for itself
    assert pairs.sum() > 5_000 and abs((is_mask[:, :-1] & is_mask[:, 1:])[pairs].mean() - 0.8**2) < 0.02
    alone = collator(examples[7:8])
    assert np.array_equal(alone["input_ids"][0], batch["input_ids"][7])
    assert np.array_equal(alone["labels"][0], batch["labels"][7])


def test_no_word_reaches_over_a_special_token(packed_data):
    """Of tokens that begin no word, those before and after a </s> are chosen apart; beside each other, together."""
    tokenizer = load_tokenizer(packed_data)
    letters = [tokenizer.get_vocab()[letter] for letter in "abcd"]
    collator, ids = DataCollatorMLM(tokenizer, 0.5, whole_words=True), [BOS, *letters[:2], EOS, *letters[2:], EOS]
    seen = set()
    for row in range(60):
        chosen = collator([{"input_ids": ids, "epoch": 0, "row": row}])["labels"][0] != IGNORE_INDEX
        assert not chosen[[0, 3, 6]].any() and chosen[1] == chosen[2] and chosen[4] == chosen[5]
        seen.add((bool(chosen[1]), bool(chosen[4])))
    assert len(seen) == 4


def load_tokenizer(data):
    from paddlenlp import transformers

    return transformers.AutoTokenizer.from_pretrained(str(data / "tokenizer"))


@pytest.mark.parametrize("whole_words", [False, True])
def test_tokens_added_to_paddlenlps_tokenizer_are_masked_and_special_ones_are_not(packed_data, whole_words):
    tokenizer = load_tokenizer(packed_data)
    size = tokenizer.vocab_size
    tokenizer.add_tokens(["covidine", "新冠"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<doc>"]})
    assert len(tokenizer) == size + 3
    covidine, other, doc = tokenizer.convert_tokens_to_ids(["covidine", "新冠", "<doc>"])
    row_ids = [BOS, doc, covidine, 10, other, doc, covidine, *range(10, 40), EOS]
    examples = [{"input_ids": row_ids, "epoch": 0, "row": row} for row in range(2000)]
    batch = DataCollatorMLM(tokenizer, 0.5, whole_words=whole_words)(examples)
    chosen, ids = batch["labels"] != IGNORE_INDEX, batch["input_ids"]
    assert not chosen[:, [0, 1, 5, -1]].any() and chosen[:, 2:5].any(axis=0).all()
    drawn = ids[chosen & (ids != batch["labels"]) & (ids != tokenizer.mask_token_id)]
    assert np.isin([covidine, other], drawn).all() and not np.isin(drawn, tokenizer.all_special_ids).any()
    _, entropy = yardsticks(rows_of([[0, doc, covidine, covidine, 10, 10, 2]]), tokenizer)
    assert entropy == pytest.approx(np.log(2))  # <doc> is none of the tokens to predict


def test_special_is_what_any_reader_calls_special():
    """transformers keeps in added_tokens_decoder what tokenizer.json marks special, beyond its named tokens."""
    added = {i: SimpleNamespace(content=str(i), special=i < 50) for i in (4, 49, 50)}
    tokenizer = Ids(**vars(TOKENIZER), added_tokens_decoder=added)
    assert utils.special_ids(tokenizer).tolist() == [BOS, PAD, EOS, 3, 4, 49, MASK]
    batch = DataCollatorMLM(tokenizer, mlm_probability=1)([{"input_ids": np.arange(100)}])
    assert np.flatnonzero(batch["labels"] == IGNORE_INDEX).tolist() == [BOS, PAD, EOS, 3, 4, 49]
    assert utils.vocabulary_size(tokenizer) == VOCAB and utils.vocabulary_size(SimpleNamespace(vocab_size=7)) == 7


def test_a_position_is_special_where_the_row_says_so_too():
    given = example(0, 32) | {"special_tokens_mask": np.arange(32) < 16}
    labels = DataCollatorMLM(TOKENIZER, mlm_probability=1)([given])["labels"][0]
    assert np.flatnonzero(labels != IGNORE_INDEX).tolist() == list(range(16, 31))  # </s> is the tokenizer's


def rows_of(ids: list) -> TokenRows:
    return TokenRows(pyarrow.table({"input_ids": list(ids), "special_tokens_mask": list(ids)}))


def yardsticks_of(ids: list, vocab_size: int, special: list) -> tuple:
    return yardsticks(rows_of(ids), Ids(size=vocab_size, all_special_ids=special))


def test_rows_that_were_selected_and_saved_by_datasets_are_those_alone_and_in_that_order(tmp_path):
    columns = {"input_ids": [[i, i + 1] for i in range(9)], "special_tokens_mask": [[0, 0]] * 9}
    data = datasets.Dataset.from_dict(columns)
    splits = datasets.DatasetDict(train=data.select([5, 3, 8]), validation=data.filter(lambda row: False))
    splits.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "validation": 1})
    saved = open_data_set(str(tmp_path / "saved"))
    rows = TokenRows(saved["train"], saved["validation"], saved["train"])
    assert [rows[0, i]["input_ids"].tolist() for i in range(len(rows))] == 2 * [[5, 6], [3, 4], [8, 9]]
    assert list(saved) == ["train", "validation"] and len(TokenRows(saved["validation"])) == 0


def test_arrays_of_arrow_are_read_from_any_place_on_without_a_copy_of_ids():
    bits = np.random.default_rng(0).integers(0, 2, 60).astype(bool)
    flags, ids = pyarrow.array(bits), pyarrow.array(np.arange(60, dtype=np.uint16))
    for start, length in ((0, 60), (0, 8), (3, 0), (3, 4), (5, 20), (8, 16), (51, 9)):
        part = slice(start, start + length)
        assert np.array_equal(utils.as_numpy(flags[part]), bits[part]) and utils.as_numpy(flags[part]).dtype == bool
        assert np.array_equal(utils.as_numpy(ids[part]), np.arange(start, start + length))
        assert length == 0 or utils.as_numpy(ids[part]).ctypes.data == ids.buffers()[1].address + 2 * start


@pytest.mark.parametrize("length", [3, -1])
def test_rows_that_end_with_padding_are_told_from_those_that_hold_it(length):
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("uint16"), length),
        special_tokens_mask=datasets.List(datasets.Value("bool"), length),
    )

    def rows_of(*ids):
        columns = {"input_ids": list(ids), "special_tokens_mask": [[False] * len(row) for row in ids]}
        return TokenRows(datasets.Dataset.from_dict(columns, features=features).data.table)

    assert not rows_of([4, 1, 2], [5, 6, 2]).ends_with(1)
    assert rows_of([4, 5, 2], [5, 2, 1]).ends_with(1)
    if length == -1:
        assert rows_of([4, 5, 2], [], [2, 1]).ends_with(1) and not rows_of([], [1, 2]).ends_with(1)


def test_the_best_loss_without_context_is_that_of_the_best_guess_from_what_a_place_shows():
    words = np.arange(4, 54)  # of a vocabulary of 50 words, whose frequencies are known
    tokenizer = Ids(mask_token_id=54, pad_token_id=PAD, size=55, all_special_ids=[0, 1, 2, 3, 54])
    shares = 1 / np.arange(1, 51) ** 1.2
    shares[-5:] = 0  # words that do not occur can still replace others
    shares /= shares.sum()
    ids = np.random.default_rng(0).choice(words, size=(500, 2000), p=shares)
    special = np.zeros(2000, dtype=bool)
    rows = [{"input_ids": row, "special_tokens_mask": special, "epoch": 0, "row": i} for i, row in enumerate(ids)]
    batch = DataCollatorMLM(tokenizer, mlm_probability=1)(rows)
    shown, right = batch["input_ids"].ravel(), batch["labels"].ravel() - 4
    seen = np.zeros((55, 50))  # how often a word is right where a token is shown: the best guess's odds
    np.add.at(seen, (shown, right), 1)
    odds = seen[shown, right] / seen.sum(axis=1)[shown]
    without_context, entropy = yardsticks_of(ids, 55, tokenizer.all_special_ids)
    assert -np.log(odds).mean() == pytest.approx(without_context, rel=0.005)
    assert without_context < 0.95 * entropy
    assert entropy == pytest.approx(-np.log(shares[right]).mean(), rel=0.005)


def test_where_all_other_places_keep_their_token_the_best_loss_is_that_of_the_masked_ones(monkeypatch):
    monkeypatch.setattr(utils, "MASKED", 0.9)
    monkeypatch.setattr(utils, "RANDOMIZED", 0.0)
    without_context, entropy = yardsticks_of([[0, 1, 2, 0, 1], [0, 0, 1, 2, 0]], 4, [])
    assert without_context == pytest.approx(0.9 * entropy, rel=1e-6)


def test_a_row_has_the_same_mask_in_any_batch_order_and_collator():
    together = DataCollatorMLM(TOKENIZER, seed=1)([example(row) for row in range(8)])
    for row in (5, 0, 7):
        alone = DataCollatorMLM(TOKENIZER, seed=1)([example(row)])
        assert np.array_equal(alone["input_ids"][0], together["input_ids"][row])
        assert np.array_equal(alone["labels"][0], together["labels"][row])
    padded = DataCollatorMLM(TOKENIZER, seed=1)([example(3), example(99, length=300)])
    assert np.array_equal(padded["labels"][0, :128], together["labels"][3])


def test_masks_change_with_epoch_seed_and_row():
    def labels(seed=1, **key):
        return DataCollatorMLM(TOKENIZER, seed=seed)([{**example(0), **key}])["labels"]

    assert np.array_equal(labels(), labels())
    for other in (labels(epoch=1), labels(seed=2), labels(row=1)):
        assert not np.array_equal(labels(), other)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_paddles_loader_takes_the_saved_rows_and_the_collator_as_they_are(packed_data, num_workers):
    """What the original page promises of DataCollatorMLM."""
    import paddle
    from paddlenlp import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(packed_data / "tokenizer"))
    rows, collator = datasets.load_from_disk(str(packed_data))["train"], DataCollatorMLM(tokenizer)
    loader = paddle.io.DataLoader(rows, batch_size=64, collate_fn=collator, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == math.ceil(len(rows) / 64) > 2
    for i, batch in enumerate(batches):
        labels, ids = batch["labels"].numpy(), np.stack(rows[64 * i : 64 * i + 64]["input_ids"])
        chosen = labels != IGNORE_INDEX
        assert np.array_equal(labels[chosen], ids[chosen]) and 0.1 < chosen.mean() < 0.2
        assert np.array_equal(batch["input_ids"].numpy()[~chosen], ids[~chosen])
        for name, array in collator([rows[j] for j in range(64 * i, min(64 * i + 64, len(rows)))]).items():
            assert np.array_equal(batch[name].numpy(), array)  # in any process


def test_batches_are_int64_padded_and_name_the_masked_positions():
    batch = DataCollatorMLM(TOKENIZER)([example(0, 30), example(1, 50)])
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.dtype("int64"))
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 64)
    assert np.all(batch["input_ids"][0, 30:] == PAD) and np.all(batch["labels"][0, 30:] == IGNORE_INDEX)
    positions, labels = batch["masked_positions"], batch["labels"].ravel()
    chosen = np.flatnonzero(labels != IGNORE_INDEX)
    assert len(positions) == 32 > len(chosen) > 0  # a GPU likes sizes that come again
    assert np.array_equal(positions[: len(chosen)], chosen) and np.all(labels[positions[len(chosen) :]] == IGNORE_INDEX)
    everything = {"input_ids": np.arange(4, 260), "special_tokens_mask": np.zeros(256, dtype=bool)}
    positions = DataCollatorMLM(TOKENIZER, mlm_probability=1)([everything])["masked_positions"]
    assert np.array_equal(positions, np.arange(256))


def test_rows_of_several_lengths_are_padded_to_a_multiple_and_packed_ones_are_not():
    def width(lengths: list, **options) -> int:
        examples = [example(row, length) for row, length in enumerate(lengths)]
        batch = DataCollatorMLM(TOKENIZER, **options)(examples)
        assert batch["input_ids"].shape == batch["labels"].shape
        assert np.all(batch["input_ids"][:, max(lengths) :] == PAD)
        assert np.all(batch["labels"][:, max(lengths) :] == IGNORE_INDEX)
        return batch["input_ids"].shape[1]

    assert [width([9, longest]) for longest in (10, 32, 33, 100)] == [32, 32, 64, 128]
    assert width([50, 50]) == width([50]) == 50  # packed: no position is wasted
    assert width([50, 50], pad_to_multiple_of=utils.LENGTH_MULTIPLE) == 64  # one length by chance
    assert width([50, 90], pad_to_multiple_of=8) == 96


def test_padding_changes_no_mask():
    short, *others = [DataCollatorMLM(TOKENIZER, seed=1, pad_to_multiple_of=m)([example(0, 50)]) for m in (1, 32, 128)]
    for batch in others:
        for name in ("input_ids", "labels"):
            assert np.array_equal(batch[name][:, :50], short[name])
        assert np.array_equal(batch["masked_positions"], short["masked_positions"])  # one row: the same flat places
    assert np.any(short["labels"] != IGNORE_INDEX)


def test_a_batch_without_a_choice_still_has_positions_to_compute():
    batch = DataCollatorMLM(TOKENIZER, mlm_probability=1e-9)([example(0), example(1)])
    assert np.all(batch["labels"] == IGNORE_INDEX)
    assert np.array_equal(batch["masked_positions"], np.zeros(32))


@pytest.mark.parametrize("length", [8, 16, 32])
def test_rows_cut_into_pieces_keep_tokens_order_and_masks(length):
    batch = DataCollatorMLM(TOKENIZER, seed=1)([example(0, 90), example(1, 50), example(2, 77)])
    pieces = utils.cut_rows(batch, length)
    assert pieces.keys() == batch.keys()
    for name in ("input_ids", "labels"):
        assert batch[name].shape == (3, 96) and pieces[name].shape == (3 * 96 // length, length)
        assert np.array_equal(pieces[name].ravel(), batch[name].ravel())  # each token once, in order
        assert np.shares_memory(pieces[name], batch[name])
    # What is predicted is what was chosen: the flat positions hold for rows and for pieces.
    assert np.array_equal(pieces["masked_positions"], batch["masked_positions"])
    labels = pieces["labels"].ravel()
    assert set(np.flatnonzero(labels != IGNORE_INDEX)) < set(pieces["masked_positions"])
    whole = utils.cut_rows(batch, 96)
    assert all(np.array_equal(whole[name], array) for name, array in batch.items())


@pytest.mark.parametrize("length", [0, 7, 64, 192])
def test_pieces_that_do_not_divide_the_rows_are_refused(length):
    batch = DataCollatorMLM(TOKENIZER)([example(0, 90), example(1, 50)])
    with pytest.raises(ValueError, match=f"rows of 96 tokens cannot be cut into pieces of {length}"):
        utils.cut_rows(batch, length)


def test_works_alone_on_plain_lists_keyed_by_their_ids_and_the_epoch():
    collator = DataCollatorMLM(TOKENIZER, seed=1)
    rows = [example(row)["input_ids"].tolist() for row in range(4)]
    first = collator([{"input_ids": ids} for ids in rows])
    assert not np.isin(np.stack(rows)[first["labels"] != IGNORE_INDEX], TOKENIZER.all_special_ids).any()
    second = collator([{"input_ids": ids} for ids in reversed(rows)])
    assert np.array_equal(first["labels"], second["labels"][::-1])
    collator.epoch = 1
    assert not np.array_equal(first["labels"], collator([{"input_ids": ids} for ids in rows])["labels"])


def test_inputs_are_never_edited():
    given = example(0)
    before = given["input_ids"].copy()
    given["input_ids"].setflags(write=False)
    batch = DataCollatorMLM(TOKENIZER)([given])
    assert np.array_equal(given["input_ids"], before)
    assert not np.array_equal(batch["input_ids"][0], before)


def test_tokenizers_without_mask_or_pad_and_impossible_probabilities_are_refused():
    for name in ("mask_token_id", "pad_token_id"):
        with pytest.raises(ValueError, match="mask token or a pad token"):
            DataCollatorMLM(Ids(**{**vars(TOKENIZER), name: None}))
    for probability in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match="mlm_probability"):
            DataCollatorMLM(TOKENIZER, mlm_probability=probability)


def rows_of_updates(accumulation: int, batch_size: int, world_size: int, first_update: int = 0) -> list:
    """The rows of each update over all ranks, micro-batch by micro-batch, as they lie in the global batch."""
    samplers = [UpdateSampler(100, batch_size, rank, world_size, accumulation, seed=7) for rank in range(world_size)]
    assert {(s.num_rows, s.global_batch, s.updates_per_epoch) for s in samplers} == {(100, 12, 8)}
    ranks = [list(sampler.batches(first_update, 20)) for sampler in samplers]
    return [
        [key for micro in range(accumulation) for rank in ranks for key in rank[update * accumulation + micro]]
        for update in range(20 - first_update)
    ]


def test_an_updates_rows_depend_on_the_global_batch_only():
    expected = rows_of_updates(1, 12, 1)
    for cut in ((2, 6, 1), (1, 6, 2), (3, 2, 2), (1, 3, 4)):
        assert rows_of_updates(*cut) == expected
    assert rows_of_updates(1, 6, 2, first_update=13) == expected[13:]  # a restart in the middle of the second epoch


def test_an_epoch_has_each_row_at_most_once_and_the_next_another_order():
    updates = rows_of_updates(1, 12, 1)
    epochs = [[key for update in updates[8 * e : 8 * e + 8] for key in update] for e in range(2)]
    for number, keys in enumerate(epochs):
        assert len(set(keys)) == 96 and {epoch for epoch, _ in keys} == {number}
    assert [row for _, row in epochs[0]] != [row for _, row in epochs[1]]


def test_the_order_depends_on_the_seed():
    one, other, again = (
        [row for keys in UpdateSampler(96, 12, seed=s).batches(0, 8) for _, row in keys] for s in (1, 2, 1)
    )
    assert one == again != other and sorted(one) == sorted(other)


def test_a_range_of_updates_may_be_asked_for_at_any_time():
    sampler = UpdateSampler(100, 12, seed=7)
    together = list(sampler.batches(0, 20))
    assert len(together) == 20
    assert [*sampler.batches(0, 5), *sampler.batches(5, 8), *sampler.batches(8, 20)] == together
    assert list(sampler.batches(3, 3)) == []
    with pytest.raises(ValueError, match="11 rows are fewer than a global batch of 12"):
        next(UpdateSampler(11, 12).batches(0, 1))


def test_evaluation_has_masks_of_its_own():
    epochs = {epoch for batch in evaluation_batches(23, batch_size=4) for epoch, _ in batch}
    assert epochs == {utils.EVALUATION_EPOCH} and min(epochs) > 10**9


def test_evaluation_reads_each_row_once_over_all_ranks():
    samplers = [evaluation_batches(23, batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    keys = [key for sampler in samplers for batch in sampler for key in batch]
    assert sorted(row for _, row in keys) == list(range(23))
    assert [len(sampler) for sampler in samplers] == [2, 2, 2]


def test_a_limited_evaluation_reads_the_same_rows_over_any_ranks():
    def rows(world_size: int) -> list:
        samplers = [evaluation_batches(1000, 4, rank, world_size, max_rows=50) for rank in range(world_size)]
        return sorted(row for sampler in samplers for batch in sampler for _, row in batch)

    assert rows(1) == rows(1) == rows(3) and len(set(rows(1))) == 50
    assert 300 < np.mean(rows(1)) < 700  # from all over
