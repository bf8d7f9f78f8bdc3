"""Files to records: every ending that is said to be read, other encodings, and what is refused by name."""

import bz2
import gzip
import json
import lzma

import pandas as pd
import pyarrow
import pytest

from lsn_lens import load_corpora
from lsn_lens.text.readers import likely_encoding, wide_encoding
from lsn_lens.text.tokens import tokenize

TEXTS = ["une rivière, deux", 'il dit "oui"', "trois\tchemins"]
FRENCH = [f"La rivière numéro {i} a été élevée" if i % 2 else f"Il fait beau, jour {i}" for i in range(40)]


def content(form, texts=TEXTS):
    rows = [{"text": text, "n": 1} for text in texts]
    return {
        "txt": lambda: "\n".join(texts),
        "jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        "ndjson": lambda: "\n".join(json.dumps(row) for row in rows),
        "json": lambda: json.dumps(rows, indent=2, ensure_ascii=False),
        "csv": lambda: pd.DataFrame(rows).to_csv(index=False),
        "tsv": lambda: pd.DataFrame(rows).to_csv(index=False, sep="\t"),
    }[form]().encode()


def packed(data, way, path):
    if way == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            out.write(data)
        return
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[way](data))


def read(folder, **options):
    return {label: list(each.find) for label, each in load_corpora(folder, hold_out=0.0, **options).items()}


@pytest.mark.parametrize("form", ["txt", "TXT", "jsonl", "ndjson", "json", "csv", "tsv", "Csv"])
@pytest.mark.parametrize("way", ["", ".gz", ".bz2", ".xz", ".zst", ".GZ"])
def test_every_ending_is_read(form, way, tmp_path):
    packed(content(form.lower()), way.lower(), tmp_path / f"fr.{form}{way}")
    packed(content("txt", ["a"]), "", tmp_path / "en.txt")
    assert read(tmp_path) == {"en": ["a"], "fr": TEXTS}
    path = tmp_path / f"fr.{form}{way}"
    assert list(load_corpora({"fr": path}, hold_out=0.0)["fr"].find) == TEXTS


def test_json_as_it_is_written(tmp_path):
    path = tmp_path / "en.json"
    for text in ('["a", "b"]', '\ufeff[{"text": "a"}, {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n'):
        path.write_text(text, encoding="utf-8")
        assert read(tmp_path) == {"en": ["a", "b"]}
    for text, got in (('{"a": \n{"text": "b"}}', "dict"), ("[1, 2", "not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"en\.json: expected a list of objects.*{got}"):
            read(tmp_path)


def test_a_table_without_the_column(tmp_path):
    (tmp_path / "en.csv").write_text("id,body\n1,a\n")
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['id', 'body'\]"):
        read(tmp_path)
    assert read(tmp_path, column="body") == {"en": ["a"]}


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("en.csv", "id,text\n1,plain\n2,one, two\n", "line 3: 3 fields, but the header has 2"),
        ("en.csv", "id,text\n1,one, two\n2,three, four\n", "line 2: 3 fields"),
        ("en.csv", 'id,text\n1,a\n2,"b\n3,c\n', "line 4: unexpected end"),
        ("en.tsv", 'id\ttext\n1\t"Yes," he said.\n2\tb\n', "line 2: .* expected after"),
        ("en.tsv", 'id\ttext\n1\t"Hello.\n2\tHow are you?"\n3\tb\n', "line 3: one field has the tabs of whole rows"),
        ("en.tsv", 'text\tid\tby\n"Hello.\t1\tx\nb\t2\ty\nYes?"\t3\tz\n', "line 4: one field has the tabs"),
        ("en.csv", "text,text\na,b\n", "has 2 columns 'text'"),
    ],
)
def test_rows_that_marks_in_a_text_cut_or_join_are_an_error(name, table, words, tmp_path):
    (tmp_path / name).write_text(table)
    with pytest.raises(ValueError, match=rf"en\.[ct]sv.*{words}"):
        read(tmp_path)


def test_tables_as_other_programs_write_them(tmp_path):
    long = "many words " * 20_000
    for table, texts in (
        ('\ufeff"text","id"\n"a, b",1\n', ["a, b"]),  # a byte order mark before a quoted name
        ("text,id\na,1,\nb,2,\n", ["a", "b"]),  # a separator at the end of each row
        ('id,text\r\n1,"a\nb"\r\n\r\n2,c "d"\r\n', ["a\nb", 'c "d"']),
        (f"text\n{long}\nnan\n", [long, "nan"]),
    ):
        (tmp_path / "en.csv").write_bytes(table.encode())
        assert read(tmp_path) == {"en": texts}
    (tmp_path / "en.csv").write_text("id,text\n1,a\n2\n")
    find = load_corpora(tmp_path, hold_out=0.0)["en"].find
    assert list(find) == ["a"] and find.skipped == {"no 'text'": 1}
    (tmp_path / "en.csv").unlink()
    (tmp_path / "en.tsv").write_text('id\ttext\n1\t"a\n\tb\n\t\tc"\n')
    assert read(tmp_path) == {"en": ["a\n\tb\n\t\tc"]}


@pytest.mark.parametrize(
    "name", ["fr.docx", "fr.txt.zip", "fr.jsonl.lz4", "fr", "de_DE.md", "zh-Hans.html", "srp_Cyrl.doc"]
)
def test_text_that_cannot_be_read_is_refused_by_name(name, tmp_path):
    (tmp_path / "en.txt").write_text("a")
    (tmp_path / name).write_text("b")
    with pytest.raises(ValueError, match=rf"\['{name}'\] look like text of a language.*files="):
        read(tmp_path)
    assert read(tmp_path, files="*.txt") == {"en": ["a"]}
    assert read(tmp_path, languages=["en"]) == {"en": ["a"]}


def test_files_that_are_no_text_of_a_language_do_not_matter(tmp_path):
    (tmp_path / "en.txt").write_text("a")
    for name in ("README.md", "LICENSE", "checksums.sha256", "_SUCCESS", ".DS_Store", "notes.doc"):
        (tmp_path / name).write_text("b")
    assert read(tmp_path) == {"en": ["a"]}
    (tmp_path / "fr").mkdir()
    with pytest.raises(ValueError, match=r"\['fr'\] look like text"):
        read(tmp_path)


def test_beside_codes_of_three_letters_others_are_languages_too(tmp_path):
    (tmp_path / "en.txt").write_text("a")
    (tmp_path / "swa.txt.zip").write_text("b")
    assert read(tmp_path) == {"en": ["a"]}
    (tmp_path / "eng.txt").write_text("a")
    with pytest.raises(ValueError, match=r"\['swa\.txt\.zip'\] look like text"):
        read(tmp_path)
    assert read(tmp_path, languages=["eng"]) == {"eng": ["a"]}


# encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(("form", "way"), [("txt", ""), ("jsonl", ".gz"), ("csv", ""), ("json", ".zst")])
def test_wide_encodings_are_named(encoding, form, way, tmp_path):
    packed(content(form).decode().encode(encoding), way, tmp_path / f"fr.{form}{way}")
    with pytest.raises(ValueError, match=rf"fr\.{form}{way} is {encoding.upper()}.*UTF-8.*encoding=\"{encoding}\""):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_encodings_without_ascii(encoding, tmp_path):
    """Few bytes are NUL, and half of the lines may decode as UTF-8."""
    (tmp_path / "zh.txt").write_bytes(
        "\n".join(f"{'雨后河水上涨桥已经关闭' * 20}{i}" for i in range(60)).encode(encoding)
    )
    with pytest.raises(ValueError, match=r"zh\.txt.*UTF-16"):
        read(tmp_path)


@pytest.mark.parametrize(("encoding", "words"), [("latin-1", "latin-1"), ("cp1252", "cp1252")])
@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_one_byte_encodings_are_an_error_where_much_is_lost(encoding, words, form, tmp_path):
    (tmp_path / f"fr.{form}").write_bytes(content(form, FRENCH).decode().encode(encoding))
    with pytest.raises(ValueError, match=rf"fr\.{form}: 20 of 40 records cannot be read as UTF-8.*{words}"):
        read(tmp_path)
    with pytest.raises(ValueError, match="biased sample"):  # also where reading stops early
        tokenize("fr", load_corpora(tmp_path)["fr"].find, tokenizer, tmp_path, max_tokens=200, progress=False)


def tokenizer(texts, add_special_tokens):
    return {"input_ids": [[1] * len(text) for text in texts]}


tokenizer.bos_token_id = tokenizer.eos_token_id = 0


def test_a_few_lines_are_a_warning_with_counts(tmp_path):
    lines = [f"Line {i}".encode() for i in range(400)]
    lines[7] = lines[300] = "é".encode("latin-1")
    (tmp_path / "en.txt").write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match=r"en: records were left out, by reason: \{'not UTF-8': 2\} \(398"):
        tokenize("en", load_corpora(tmp_path, hold_out=0.0)["en"].find, tokenizer, tmp_path, progress=False)


def test_texts_that_were_read_in_a_wrong_encoding_before():
    texts = [text.encode("utf-16-le").decode("latin-1") for text in FRENCH]
    with pytest.raises(ValueError, match=r"texts:fr: 40 of 40 records.*NUL"):
        list(load_corpora({"fr": texts})["fr"].find)


@pytest.mark.parametrize("text", ["plain text\n" * 50, "雨后河水上涨\n" * 50, "naïve\n", ""])
def test_utf8_is_no_wide_encoding(text):
    assert wide_encoding(text.encode()) == ""


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Река высокая после дождя, мост закрыт", "cp1251"), ("雨后河水上涨桥已经关闭了", "gb18030")],
)
def test_a_guess_at_other_encodings_names_the_right_one_among_others(text, encoding):
    assert encoding in likely_encoding(text.encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_wide_text_without_ascii_is_told_by_its_nul_bytes(encoding):
    assert wide_encoding(("河流很长很宽" * 60).encode(encoding)) == encoding.upper()


def test_encodings_of_seven_bits_are_no_text(tmp_path):
    (tmp_path / "ja.txt").write_bytes("\n".join(["川は長い。"] * 8).encode("iso2022_jp"))
    with pytest.raises(ValueError, match=r"ja\.txt.*ISO-2022-JP"):
        read(tmp_path)


def test_one_line_of_utf16_without_a_mark_is_among_the_guesses():
    assert "UTF-16-LE" in likely_encoding(("河流很长很宽天空是蓝色的" * 30).encode("utf-16-le"))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("name", ["en.txt", "en.jsonl", "en.json", "en.csv"])
def test_every_reader_knows_every_line_end(name, end, tmp_path):
    texts = ["Grüße aus Köln", "河水上涨", "third"]
    plain = {"en.txt": texts, "en.csv": ["text", *texts]}
    lines = plain.get(name, [json.dumps({"text": each}, ensure_ascii=False) for each in texts])
    (tmp_path / name).write_bytes((end.join(lines) + end).encode())
    assert list(load_corpora(tmp_path, hold_out=0.0)["en"].find) == texts
