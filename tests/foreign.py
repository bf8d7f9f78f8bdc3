"""Sentences in languages that the embedded model was not trained on, written for these tests."""

import json
from pathlib import Path

LINES = Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
FOREIGN = {each["language"]: each["text"] for each in map(json.loads, LINES)}


def pieces(text: str, length: int) -> list[str]:
    """A text cut at spaces into pieces of about so many characters, the last and shorter one left out."""
    found, rest = [], text
    while len(rest) >= length:
        end = rest.rfind(" ", length // 2, length + 1)
        end = length if end < 0 else end
        found.append(rest[:end])
        rest = rest[end:].lstrip()
    return found
