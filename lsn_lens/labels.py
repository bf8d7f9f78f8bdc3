"""What a language may be called, wherever labels are given."""

from collections.abc import Iterable

RESERVED = ("none",)  # tables of losses call their row without an intervention so


def label_list(labels: Iterable[str], name: str = "languages") -> list[str]:
    """Labels in their order, without repeats.

    Raises:
        ValueError: A lone string, which would be read letter by letter; or something that is not a label.
    """
    if isinstance(labels, str):
        raise ValueError(f"{name}={labels!r} is one string: expected a list of labels, as [{labels!r}].")
    return list(dict.fromkeys(check_label(each, name) for each in labels))


def check_label(label: object, name: str = "languages") -> str:
    """Refuse what cannot be a language's label.

    Raises:
        ValueError: Not a text, an empty one, or a name that tables need for something else.
    """
    if isinstance(label, bool):
        raise ValueError(
            f"{name}: {label} is not a label. YAML reads no, on, off and yes as true or false: quote them, "
            "as in ['en', 'no']."
        )
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{name}: {label!r} is not a label: expected a text such as 'en'.")
    if label in RESERVED:
        raise ValueError(
            f"{name}: no language can be labelled {label!r}, as tables of losses call their row without an "
            "intervention so. Give it another label."
        )
    return label
