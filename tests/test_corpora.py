"""Text sources: folders, data sets, presets, the embedded text, and what is wrong with them."""

import gzip
import itertools
import json
import random
from itertools import pairwise

import datasets
import jaxtyping
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from lsn_lens import load_corpora
from lsn_lens.text.documents import Documents
from lsn_lens.text.records import Records
from lsn_lens.text.tokens import tokenize

TEXTS = {"en": ["one river", "two hills", "three roads"], "fr": ["une rivière", "deux collines", "trois chemins"]}
EIGHT = ("de", "en", "es", "fr", "id", "ja", "vi", "zh")


def write(folder, label, suffix, texts):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}{suffix}"
    if suffix.endswith(".txt"):
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    elif suffix.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "length": [len(text) for text in texts]}), path)
    else:
        lines = "".join(json.dumps({"text": text, "n": 1}, ensure_ascii=False) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith(".gz") else lines)
    return path


def read(corpus):
    return list(corpus.find), list(corpus.hold_out)


def to_tokens(documents, folder):
    """Tokenise with one token a character."""

    def tokenizer(texts, add_special_tokens):
        return {"input_ids": [[1] * len(text) for text in texts]}

    tokenizer.bos_token_id = tokenizer.eos_token_id = 0
    return tokenize("xx", documents, tokenizer, folder, progress=False)


# folders


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".parquet", ".train.jsonl.gz"])
def test_folders(suffix, tmp_path):
    for label, texts in TEXTS.items():
        write(tmp_path / "news", label, suffix, texts)
    corpora = load_corpora(tmp_path / "news", hold_out=0.0)
    assert list(corpora) == ["en", "fr"]
    assert {label: list(corpus.find) for label, corpus in corpora.items()} == TEXTS
    assert corpora["fr"].source == f"news/fr{suffix}"
    assert "fr" in repr(corpora["fr"])
    assert list(load_corpora(str(tmp_path / "news"), ["fr"], hold_out=0.0)["fr"].find) == TEXTS["fr"]


def test_several_files_of_a_language_follow_each_other(tmp_path):
    write(tmp_path, "en", ".b.jsonl", ["second"])
    write(tmp_path, "en", ".a.txt", ["first"])
    write(tmp_path, "en", ".notes.md.txt", ["third"])
    (tmp_path / "README.md").write_text("not text")
    (tmp_path / "._en.txt").write_text("not text either")
    (tmp_path / "en.folder.txt").mkdir()
    corpora = load_corpora(tmp_path, hold_out=0.0)
    assert list(corpora) == ["en"]
    assert list(corpora["en"].find) == ["first", "second", "third"]
    assert list(load_corpora(tmp_path, files="*.jsonl", hold_out=0.0)["en"].find) == ["second"]


def test_a_folder_in_two_parts(tmp_path):
    write(tmp_path / "find", "en", ".txt", ["a", "b"])
    write(tmp_path / "hold-out", "en", ".jsonl", ["c"])
    assert read(load_corpora(tmp_path)["en"]) == (["a", "b"], ["c"])
    write(tmp_path / "find", "fr", ".txt", ["d"])
    with pytest.raises(ValueError, match=r"different languages: \['en', 'fr'\] and \['en'\]"):
        load_corpora(tmp_path)
    assert list(load_corpora(tmp_path, ["en"])) == ["en"]


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder nor one of 'demo', 'wikipedia'"):
        load_corpora(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no files '\*' ending in \.txt"):
        load_corpora(tmp_path)
    write(tmp_path, "en", ".txt", ["a"])
    with pytest.raises(ValueError, match=r"has no files '\*\.jsonl'"):
        load_corpora(tmp_path, files="*.jsonl")
    for pattern in ("/etc/*", ""):
        with pytest.raises(ValueError, match="is not a pattern"):
            load_corpora(tmp_path, files=pattern)
    with pytest.raises(KeyError, match=r"no text for \['xx'\]; it has \['en'\]"):
        load_corpora(tmp_path, ["en", "xx"])


# what cannot be read


def test_unreadable_lines_are_counted_by_reason(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "first, after a byte order mark"}',
        b'{"text": "cut of',
        b'{"text": "\xff\xfe"}',
        b'{"title": "no text"}',
        b'["a list"]',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"text": "  "}',
        b"",
        b'{"text": "half a pair: \\ud83d"}',
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"text": "last"}\r',
    ]
    (tmp_path / "en.jsonl").write_bytes(b"\n".join(lines))
    find = load_corpora(tmp_path, hold_out=0.0)["en"].find
    for _ in range(2):  # counts are of the latest reading, not added up
        assert list(find) == ["first, after a byte order mark", "last"]
        assert find.skipped == {
            "not JSON": 3,
            "not UTF-8": 1,
            "no 'text'": 2,
            "not text but int": 1,
            "not text but NoneType": 1,
            "empty": 2,
            "not valid Unicode": 1,
        }


def test_unreadable_lines_of_plain_text(tmp_path):
    (tmp_path / "en.txt").write_bytes(b"one\r\n\xff\n\ntwo")
    find = load_corpora(tmp_path, hold_out=0.0)["en"].find
    assert list(find) == ["one", "two"]
    assert find.skipped == {"not UTF-8": 1, "empty": 1}


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_a_file_that_is_cut_off_is_named(suffix, tmp_path):
    path = write(tmp_path, "en", suffix, [f"text {i} {i * i}" for i in range(5000)])
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"no such format"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"en{suffix} is damaged or cut off"):
            list(load_corpora(tmp_path, hold_out=0.0)["en"].find)


def test_a_wrong_column_is_named(tmp_path):
    write(tmp_path, "en", ".parquet", ["a"])
    message = r"no column 'body'; its columns are \['text', 'length'\]"
    with pytest.raises(ValueError, match=message):
        list(load_corpora(tmp_path, column="body")["en"].find)
    data = datasets.Dataset.from_dict({"text": ["a"], "length": [1]})
    with pytest.raises(ValueError, match=message):
        list(load_corpora({"en": data}, column="body")["en"].find)


@pytest.mark.parametrize("content", ["", "\n\n", '{"title": "a"}\n{"title": "b"}\n'], ids=["empty", "blank", "column"])
def test_a_file_without_text_is_an_error_when_it_is_tokenised(content, tmp_path):
    (tmp_path / "en.jsonl").write_text(content)
    with pytest.raises(ValueError, match="xx: no text") as caught:
        to_tokens(load_corpora(tmp_path)["en"].find, tmp_path)
    assert ("no 'text'" in str(caught.value)) == ("title" in content)


# texts and data sets in a mapping


def test_texts_files_and_data_sets_by_language(tmp_path):
    rows = [{"text": text} for text in TEXTS["en"]]
    source = {
        "list": TEXTS["en"],
        "generator": (text for text in TEXTS["en"]),
        "series": pd.Series(TEXTS["en"]),
        "file": write(tmp_path, "en", ".jsonl.gz", TEXTS["en"]),
        "name": str(write(tmp_path, "en", ".txt", TEXTS["en"])),
        "map": datasets.Dataset.from_list(rows),
        "stream": datasets.Dataset.from_list(rows).to_iterable_dataset(),
        "endless": datasets.IterableDataset.from_generator(lambda: iter(rows)),
    }
    for corpus in load_corpora(source, hold_out=0.0).values():
        for _ in range(2):
            assert list(corpus.find) == TEXTS["en"]
    assert list(load_corpora(source, ["map", "list"])) == ["map", "list"]


def test_rows_that_are_not_text_are_counted(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", None, "", "b"]})
    find = load_corpora({"en": data}, hold_out=0.0)["en"].find
    assert list(find) == ["a", "b"]
    assert find.skipped == {"not text but NoneType": 1, "empty": 1}
    assert to_tokens(find, tmp_path).skipped == find.skipped


@pytest.mark.parametrize("kind", [datasets.DatasetDict, datasets.IterableDatasetDict])
def test_splits_are_not_taken_for_text_or_languages(kind):
    data = datasets.Dataset.from_dict({"text": ["a"]})
    data = data.to_iterable_dataset() if kind is datasets.IterableDatasetDict else data
    splits = kind({"train": data, "test": data})
    with pytest.raises(ValueError, match=r"en: pass one split of the data set, one of \['train', 'test'\]"):
        load_corpora({"en": splits})
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\]"):
        load_corpora(splits)
    assert list(load_corpora(dict(splits))) == ["train", "test"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a text in place of a list of texts " * 200, r"is not a file ending in .*Texts go in a list"),
        ("missing.jsonl", "'missing.jsonl' is not a file"),
        (3, "got int"),
        (b"bytes", "got bytes"),
        ({"train": ["a"]}, "got dict"),
        (pd.DataFrame({"content": ["a"]}), "no column 'text'"),
    ],
    ids=["text", "missing", "number", "bytes", "dict", "frame"],
)
def test_values_that_are_no_source(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_corpora({"en": value})
    assert len(str(caught.value)) < 300


# find and hold-out


@pytest.mark.parametrize("hold_out", [0.0, 0.01, 0.1, 0.29, 1 / 3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 2, 10, 101])
def test_every_document_is_in_exactly_one_part(hold_out, n):
    texts = [f"text {i}" for i in range(n)]
    corpus = load_corpora({"en": texts}, hold_out=hold_out)["en"]
    find, held = read(corpus)
    assert sorted(find + held, key=texts.index) == texts
    assert len(held) == int(n * hold_out)
    assert read(corpus) == (find, held)


def test_held_out_documents_are_spread_evenly():
    corpus = load_corpora({"en": [str(i) for i in range(300)]}, hold_out=1 / 3)["en"]
    held = [int(text) for text in corpus.hold_out]
    assert all(2 <= later - earlier <= 4 for earlier, later in pairwise(held))


def test_parallel_files_stay_aligned_around_unreadable_lines(tmp_path):
    for label in ("en", "fr"):
        lines = [json.dumps({"text": f"{i} {label}"}) for i in range(30)]
        lines[{"en": 4, "fr": 11}[label]] = "{broken"
        (tmp_path / f"{label}.jsonl").write_text("\n".join(lines))
    corpora = load_corpora(tmp_path)
    numbers = {
        label: [{int(text.split()[0]) for text in part} for part in read(corpus)] for label, corpus in corpora.items()
    }
    for part in (0, 1):
        assert numbers["en"][part] ^ numbers["fr"][part] <= {4, 11}
        assert not numbers["en"][part] & numbers["fr"][1 - part]


@pytest.mark.parametrize("hold_out", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_to_hold_out_must_be_a_share(hold_out):
    with pytest.raises(ValueError, match="hold_out="):
        load_corpora({"en": ["a"]}, hold_out=hold_out)


# one text in one part


def stream_of(texts):
    return datasets.IterableDataset.from_generator(lambda: iter([{"text": text} for text in texts]))


def test_a_stream_in_another_order_each_time_is_refused_by_name(tmp_path):
    draw = random.Random(0)

    def rows():
        yield from ({"text": f"text {i}"} for i in draw.sample(range(30), 30))

    for first, second in (("find", "hold_out"), ("hold_out", "find"), ("find", "find")):
        corpus = load_corpora({"fr": datasets.IterableDataset.from_generator(rows)})["fr"]
        list(getattr(corpus, first))
        with pytest.raises(ValueError, match=r"datasets:.* gave another text as record \d+ when it was read again"):
            list(getattr(corpus, second))
        with pytest.raises(ValueError, match="read again"):  # also by whoever tokenises, and stops early
            tokenize("fr", getattr(corpus, second), character_tokens, tmp_path, max_tokens=100, progress=False)


def test_a_source_that_ends_early_or_late_the_second_time_is_refused():
    for sizes in ((9, 5), (5, 9)):
        left = iter(sizes)
        records = Records("short", lambda left=left: [f"text {i}" for i in range(next(left))])
        documents = Documents(records)
        list(documents)
        if sizes == (5, 9):  # more of the same is no contradiction: the first reading may have been stopped
            assert len(list(documents)) == 9
        else:
            with pytest.raises(ValueError, match="short gave nothing more as record 5"):
                list(documents)


REPEATED = ["a", "b", "c", "a", "d", "b", "e", "f", "a", "g", "h", "g", "i", "c", "j"]


def parts(texts, hold_out):
    return [int((i + 1) * hold_out) > int(i * hold_out) for i in range(len(texts))]


@pytest.mark.parametrize("hold_out", [0.0, 0.2, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("source", [list, stream_of], ids=["list", "stream"])
@pytest.mark.parametrize("seed", range(4))
def test_no_text_is_in_both_parts_and_none_is_measured_twice(hold_out, source, seed):
    texts = random.Random(seed).sample(REPEATED, len(REPEATED))
    corpus = load_corpora({"en": source(texts)}, hold_out=hold_out)["en"]
    find, held = read(corpus)
    if source is list and {texts[i] for i, out in enumerate(parts(texts, hold_out)) if out} <= set(find):
        return  # nothing could be held out, and a warning says so
    assert not set(find) & set(held)
    assert len(set(held)) == len(held)
    assert set(find) | set(held) == set(texts)
    is_held = parts(texts, hold_out)
    all_find = [text for text, out in zip(texts, is_held, strict=True) if not out]
    if source is list:  # what is found with keeps its repetitions, so that parallel text stays in step
        assert find == all_find
    assert [text for text in find if text not in set(all_find)] == []
    list(corpus.find)
    assert corpus.find.repeated == len(find) - len(set(find))
    assert read(corpus) == (find, held)
    assert len(held) + sum(corpus.hold_out.skipped.values()) == sum(is_held)


def test_equal_documents_are_said_to_be_no_hold_out(tmp_path):
    corpus = load_corpora({"en": ["one river"] * 6})["en"]
    with pytest.warns(UserWarning, match="every hold-out text is also a text to find units with.* All are kept"):
        assert list(corpus.hold_out) == ["one river"] * 2
    assert corpus.hold_out.shared == 2 and corpus.hold_out.skipped == {}
    with pytest.warns(UserWarning, match="nothing is held out"):
        assert to_tokens(corpus.hold_out, tmp_path).noticed["also in the other part"] == 2
    with pytest.warns(UserWarning, match="3 of 4 documents are repetitions"):
        assert to_tokens(corpus.find, tmp_path).noticed["repeated"] == 3


def test_two_folders_share_no_text(tmp_path):
    write(tmp_path / "find", "en", ".txt", ["a", "b", "b", "c"])
    write(tmp_path / "hold-out", "en", ".jsonl", ["c ", "d", "d", "e", "a"])
    corpus = load_corpora(tmp_path)["en"]
    for _ in range(2):
        assert read(corpus) == (["a", "b", "b", "c"], ["d", "e"])
        assert corpus.hold_out.skipped == {"also in the other part": 2, "repeated": 1}


def test_a_stream_without_end_is_read_as_far_as_needed(tmp_path):
    corpus = load_corpora({"en": datasets.IterableDataset.from_generator(endless)})["en"]
    for part in (corpus.hold_out, corpus.find):
        assert tokenize("en", part, character_tokens, tmp_path, max_tokens=100, progress=False).n_tokens >= 100


def endless():
    yield from ({"text": f"text {i}"} for i in itertools.count())


def character_tokens(texts, add_special_tokens):
    return {"input_ids": [[1] * len(text) for text in texts]}


character_tokens.bos_token_id = character_tokens.eos_token_id = 0


# labels


def test_a_lone_string_is_no_list_of_languages():
    with pytest.raises(ValueError, match=r"languages='en' is one string: expected a list of labels, as \['en'\]"):
        load_corpora("demo", "en")
    with pytest.raises(KeyError, match=r"\['xx'\]"):
        load_corpora("demo", ["xx"])


@pytest.mark.parametrize(
    ("label", "message"),
    [("none", "can be labelled 'none'"), (False, "YAML reads no"), ("", "is not a label"), (3, "not a label")],
)
def test_labels_that_cannot_be(label, message, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        load_corpora({"en": ["a"], label: ["b"]})
    with pytest.raises(ValueError, match=message):
        load_corpora("demo", ["en", label])
    with pytest.raises(ValueError, match=message):
        tokenize(label, ["a"], character_tokens, tmp_path, progress=False)


# the embedded text


def test_the_embedded_text_is_parallel():
    corpora = load_corpora("demo")
    assert tuple(sorted(corpora)) == EIGHT
    ids = {}
    for label, corpus in corpora.items():
        find, held = read(corpus)
        assert (len(find), len(held)) == (160, 80)
        assert len(set(find + held)) == 240
        assert not corpus.find.skipped
        assert not corpus.hold_out.skipped
        for part in ("find", "hold-out"):
            rows = [json.loads(line) for line in (demo_file(part, label)).read_text(encoding="utf-8").splitlines()]
            ids.setdefault(part, []).append([row["id"] for row in rows])
    assert all(each == ids["find"][0] for each in ids["find"])
    assert all(each == ids["hold-out"][0] for each in ids["hold-out"])
    assert len({*ids["find"][0], *ids["hold-out"][0]}) == 240


def demo_file(part, label):
    from lsn_lens.text.corpora import DEMO_TEXT

    return DEMO_TEXT / part / f"{label}.jsonl"


def test_the_embedded_languages_are_asked_for_by_name():
    assert list(load_corpora("demo", ["vi", "en", "vi"])) == ["vi", "en"]
    with pytest.raises(KeyError, match=r"\['xx'\].*'de'"):
        load_corpora("demo", ["xx"])


# presets


@pytest.fixture
def asked(monkeypatch):
    """What `datasets.load_dataset` is asked for; it gives a small stream."""
    calls = []

    def load_dataset(repository, config, **settings):
        calls.append((repository, config, settings))
        return datasets.IterableDataset.from_generator(lambda: iter([{"text": f"{config} {i}"} for i in range(3)]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("wikipedia", ["wikimedia/wikipedia 20231101.en", "wikimedia/wikipedia 20231101.zh"]),
        ("fineweb2", ["HuggingFaceFW/fineweb-2 en", "HuggingFaceFW/fineweb-2 cmn_Hani"]),
        ("c4", ["allenai/c4 en", "allenai/c4 zh"]),
    ],
)
def test_presets_are_streamed(preset, expected, asked):
    corpora = load_corpora(preset, ["en", "zh-Hans"], hold_out=0.0)
    assert [f"{repository} {config}" for repository, config, _ in asked] == expected
    assert all(settings == {"split": "train", "streaming": True} for *_, settings in asked)
    assert list(corpora) == ["en", "zh-Hans"]
    config = expected[0].split()[1]
    assert list(corpora["en"].find) == [f"{config} {i}" for i in range(3)]
    assert corpora["en"].source == expected[0].replace(" ", "/")


def test_preset_codes(asked):
    load_corpora("fineweb2", ["fr", "zh", "srp_Cyrl"])
    load_corpora("c4", ["he"])
    assert [config for _, config, _ in asked] == ["fra_Latn", "cmn_Hani", "srp_Cyrl", "iw"]


def test_a_preset_needs_languages(asked):
    with pytest.raises(ValueError, match="name the languages"):
        load_corpora("wikipedia")
    assert not asked


def test_a_preset_offline_says_what_to_do(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"wikimedia/wikipedia \(20231101\.fr\).*Offline, pass a folder"):
        load_corpora("wikipedia", ["fr"])
