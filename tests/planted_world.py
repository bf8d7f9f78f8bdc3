"""A world of artificial languages with units planted in it, made once; `conftest.py` hands the fixtures on."""

import pytest
import torch
import transformers

from lsn_lens.planted.ground import Ground
from lsn_lens.planted.planting import plant
from lsn_lens.planted.world import make_world

TOKENS, EFFECT = 1500, 0.03
LABELS = ("latin-1", "cyrillic-1", "latin-2", "cyrillic-2")
QUICK = {"tokens": TOKENS, "effect": EFFECT, "progress": False}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", progress=False)


@pytest.fixture(scope="session")
def planted(world, tmp_path_factory):
    return plant(world.folder, world.corpora, tmp_path_factory.mktemp("planted") / "p", **QUICK)


@pytest.fixture(scope="session")
def ground(world):
    return Ground.of(world.folder, world.corpora, TOKENS)


@pytest.fixture(scope="session")
def ungated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ungated")
    world = make_world(folder / "w", model_type="gpt_neox", progress=False)
    roles = ("specific", "shared", "loud", "frequency")
    return world, plant(world.folder, world.corpora, folder / "p", roles=roles, **QUICK)


def documents(planted, world, tokens):
    """Held-out documents of each language behind the separator, until they have so many tokens without it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(planted.folder)
    found = {}
    for label in planted.languages:
        found[label], total = [], 0
        for text in world.corpora[label].hold_out:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found[label].append(torch.tensor([[tokenizer.bos_token_id, *ids]]))
            total += len(ids)
            if total >= tokens:
                break
    return found


def first_of(rows, tokens):
    """The first documents, until they have so many tokens with the separator."""
    taken = []
    for row in rows:
        if sum(each.shape[1] for each in taken) < tokens:
            taken.append(row)
    return taken


def of(planted, role, label):
    units = planted.units
    return units.loc[units["role"].eq(role) & units["concept"].eq(label)].iloc[0]
