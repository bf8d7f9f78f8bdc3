"""A task made of parallel text: choose the ending of a document among those of others."""

from itertools import islice
from typing import Any

from lsn_lens.generation.tasks.items import Item
from lsn_lens.refusal import DoesNotApply
from lsn_lens.text.corpora import as_corpora


def ending_items(corpora: Any, *, choices: int = 4, items: int | None = None) -> list[Item]:
    """Items that give the first half of a document, and as choices its own ending and those of the next documents.

    Document i of each language has the id i, so that parallel text gives parallel items. Documents are cut at the first
    space behind the middle, or in the middle where there is none.

    Args:
        corpora: Text; the documents are those of the `find` part. Lists of texts are taken whole.
        choices: Number of choices, so that chance is 1 / choices.
        items: The first documents only.

    Raises:
        ValueError: Fewer than two choices.
        DoesNotApply: A language with fewer documents than choices, or with repeated endings.

    The task is ours.
    """
    if choices < 2:
        raise ValueError(f"choices={choices}: expected 2 or more.")
    made = []
    for label, corpus in as_corpora(corpora, hold_out=0.0).items():
        halves = [_halves(text) for text in islice(corpus.find, items)]
        endings = [ending for _, ending in halves]
        if len(set(endings)) < max(len(endings), choices):
            raise DoesNotApply(
                f"{label}: {len(endings)} documents with {len(set(endings))} different endings; expected at least "
                f"{choices}, all different."
            )
        for place, (prompt, ending) in enumerate(halves):
            offered = [endings[(place + step) % len(endings)] for step in range(choices)]
            turned = offered[place % choices :] + offered[: place % choices]  # the answer has no place of its own
            made.append(Item(prompt, (ending,), tuple(turned), label, str(place)))
    return made


def _halves(text: str) -> tuple[str, str]:
    middle = (len(text) + 1) // 2
    place = text.find(" ", middle)
    place = place if 0 <= place < len(text) - 1 else middle
    return text[:place], text[place:]
