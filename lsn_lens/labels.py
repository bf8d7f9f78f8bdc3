"""Checks of language labels."""

from collections.abc import Iterable

# Columns that stand beside one column per language, and rows that stand beside one row per language.
COLUMNS = frozenset({
    "bases", "evaluated", "intervened", "language", "layer", "mean_jaccard", "method", "notes", "owner", "part",
    "planting", "rate", "script", "text", "units", "units of",
})  # fmt: skip
RESERVED = COLUMNS | {"none", "all", "(all)", "nothing", "und"}


def label_list(labels: Iterable[str], name: str = "languages") -> list[str]:
    """Labels in their order, without repeats.

    Raises:
        ValueError: A single string, which would be read letter by letter, or an element that is not a label.
    """
    if isinstance(labels, str):
        raise ValueError(f"{name}={labels!r} is one string: expected a list of labels, as [{labels!r}].")
    return list(dict.fromkeys(check_label(each, name) for each in labels))


def check_label(label: object, name: str = "languages") -> str:
    """Require a valid language label, and return it.

    Raises:
        ValueError: Not a string, an empty string, spaces around it, slashes or control characters (labels name files),
            or a name that tables reserve.
    """
    if isinstance(label, bool):
        raise ValueError(
            f"{name}: {label} is not a label. YAML reads no, on, off and yes as true or false: quote them, "
            "as in ['en', 'no']."
        )
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{name}: {label!r} is not a label: expected a text such as 'en'.")
    if label != label.strip():
        raise ValueError(f"{name}: {label!r} begins or ends with a space: give {label.strip()!r}.")
    if odd := [each for each in label if each in "/\\" or each < " "]:
        raise ValueError(
            f"{name}: {label!r} holds {odd[0]!r}: labels name files, so expected no slash and no control character."
        )
    if label in RESERVED:
        raise ValueError(
            f"{name}: no language can be labelled {label!r}: tables use this name for a row or column beside those of "
            "the languages. Choose another label."
        )
    return label


def check_apart(languages: Iterable[str], names: Iterable[str]) -> None:
    """Require that no language is labelled as a row or column that a table has beside those of the languages.

    `check_label` refuses these labels where text is read; a set, or a run from a folder, can still bring one.

    Raises:
        ValueError: A language with one of the names.
    """
    if same := sorted(set(languages) & set(names)):
        raise ValueError(
            f"the languages {same} are labelled as rows or columns that a table has beside those of the languages: "
            "choose other labels."
        )
