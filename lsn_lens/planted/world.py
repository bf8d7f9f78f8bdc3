"""A small synthetic world: artificial languages, and a model trained on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lsn_lens.bars import tqdm
from lsn_lens.text.corpora import load_corpora
from lsn_lens.text.documents import LanguageCorpus

ALPHABETS = {
    "LATIN": range(0x61, 0x7B),
    "CYRILLIC": range(0x430, 0x450),
    "GREEK": range(0x3B1, 0x3CA),
    "ARMENIAN": range(0x561, 0x587),
    "GEORGIAN": range(0x10D0, 0x10F1),
    "HEBREW": range(0x5D0, 0x5EB),
}
WORDS, LETTERS = 60, (3, 7)  # words per language, letters per word
LENGTH = 48  # words per document
DOCUMENTS = 180  # documents per language, a third of them held out
FOLLOWERS, FOLLOWED = 3, 0.6  # likely followers per word, and their total probability
BATCH, RATE = 16, 5e-3  # documents per step, and the highest learning rate
SPECIAL = ("<bos>", "<unk>")
D_MODEL, CONTEXT = 48, 64
COMMON = 0.5  # initial common component of all tokens, as in models of real text
SIZES: dict[str, dict[str, Any]] = {
    # model type in transformers -> a model whose MLPs have one neuron per layer
    "llama": {"hidden_size": D_MODEL, "intermediate_size": 1, "num_hidden_layers": 2, "num_attention_heads": 4,
              "max_position_embeddings": CONTEXT},
    "gpt_neox": {"hidden_size": D_MODEL, "intermediate_size": 1, "num_hidden_layers": 2, "num_attention_heads": 3,
                 "max_position_embeddings": CONTEXT},
    "gpt2": {"n_embd": D_MODEL, "n_inner": 1, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
             "tie_word_embeddings": False},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class World:
    """The result of `make_world`.

    Attributes:
        folder: A Hugging Face checkpoint with its tokenizer: for `plant` and `lsn.load_model`.
        corpora: The languages' text, none of which the model was trained on.
        words: Words of each language, the most frequent first.
        scripts: Script of each language.
    """

    folder: Path
    corpora: Mapping[str, LanguageCorpus] = field(repr=False)
    words: Mapping[str, tuple[str, ...]] = field(repr=False)
    scripts: Mapping[str, str]


def make_world(
    folder: str | Path,
    *,
    languages: int = 4,
    lexical_overlap: float | int = 0.2,
    scripts: Sequence[str] = ("LATIN", "CYRILLIC"),
    model_type: str = "llama",
    steps: int = 400,
    seed: int = 0,
    progress: bool = True,
) -> World:
    """Artificial languages and a model of them without effective MLP neurons.

    A language has words of random letters, whose frequencies fall as Zipf's law says, and an order of its own: after
    each word, a few words are likelier. The model has attention and embeddings; its MLPs have one neuron per layer,
    which does nothing. So all effective neurons come from `plant`. Takes seconds on one core.

    Args:
        folder: Output folder, new or empty.
        languages: Number of languages, named after their scripts: "latin-1", "latin-2" and so on.
        lexical_overlap: Share of a language's words that all languages of its script have, in [0, 1). They are as
            frequent as other words, but each language orders them in its own way.
        scripts: Of `ALPHABETS`; languages take them in turn.
        model_type: "llama" (gated MLPs), "gpt2" or "gpt_neox".
        steps: Of training, 16 documents each.
        seed: Seed of words, text and training.
        progress: Show a progress bar.

    Raises:
        FileExistsError: The folder is not empty.
        KeyError: An unknown script or model type.
        ValueError: Fewer than two languages, or an overlap outside [0, 1).
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty. Give a new folder.")
    if languages < 2:
        raise ValueError(f"languages={languages}: expected at least two.")
    if not 0 <= lexical_overlap < 1:
        raise ValueError(f"lexical_overlap={lexical_overlap}: expected a share in [0, 1).")
    if unknown := [each for each in scripts if each not in ALPHABETS]:
        raise KeyError(f"no script {unknown}; the scripts are {list(ALPHABETS)}.")
    if not scripts or model_type not in SIZES:
        raise KeyError(f"scripts={scripts}, model_type={model_type!r}: give a script, and one of {list(SIZES)}.")
    written = {}
    for number in range(languages):
        script = scripts[number % len(scripts)]
        written[f"{script.lower()}-{number // len(scripts) + 1}"] = script
    draw = np.random.default_rng(seed)
    words = _words(written, round(lexical_overlap * WORDS), draw)
    chains = {label: _chain(draw) for label in words}
    texts = {
        label: [" ".join(words[label][word] for word in row) for row in _walks(chains[label], DOCUMENTS, draw)]
        for label in words
    }
    tokenizer = _tokenizer(words)
    ids = {label: np.array(tokenizer.convert_tokens_to_ids(list(each))) for label, each in words.items()}
    drawn = [(chains[label], ids[label]) for label in words]
    model = _trained(model_type, len(tokenizer), drawn, steps, seed, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return World(folder, load_corpora(texts), words, written)


def _words(written: Mapping[str, str], shared: int, draw: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """Words of each language, all different but those that the languages of a script share."""
    used: set[str] = set()

    def new(script: str, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            word = "".join(map(chr, draw.choice(list(ALPHABETS[script]), draw.integers(*LETTERS))))
            if word not in used:
                used.add(word)
                found.append(word)
        return found

    common = {script: new(script, shared) for script in dict.fromkeys(written.values())}
    words = {}
    for label, script in written.items():
        mine = common[script] + new(script, WORDS - shared)
        words[label] = tuple(mine[place] for place in draw.permutation(WORDS))
    return words


def _chain(draw: np.random.Generator) -> np.ndarray:
    """Transition probabilities `[word, word]`; words are in order of frequency."""
    frequency = 1 / (np.arange(WORDS) + 2.7)
    frequency /= frequency.sum()
    chain = np.tile((1 - FOLLOWED) * frequency, (WORDS, 1))
    for row in chain:
        row[draw.choice(WORDS, FOLLOWERS, replace=False, p=frequency)] += FOLLOWED / FOLLOWERS
    return chain


def _walks(chain: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Documents as word numbers `[document, word]`."""
    edges = chain.cumsum(1)
    rows = [draw.integers(WORDS, size=count)]
    for _ in range(LENGTH - 1):
        reached = (draw.random(count)[:, None] > edges[rows[-1]]).sum(1)
        rows.append(reached.clip(max=WORDS - 1))
    return np.stack(rows, 1)


def _tokenizer(words: Mapping[str, Sequence[str]]) -> PreTrainedTokenizerFast:
    """One token per word."""
    known = dict.fromkeys([*SPECIAL, *(word for each in words.values() for word in each)])
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[attr-defined]
    bos, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=bos, pad_token=bos, unk_token=unknown
    )


def _trained(
    model_type: str,
    vocabulary: int,
    languages: Sequence[tuple[np.ndarray, np.ndarray]],
    steps: int,
    seed: int,
    progress: bool,
) -> Any:
    """A model trained on text drawn for it alone; languages are chains and the ids of their words."""
    draw, threads = np.random.default_rng([seed, 1]), torch.get_num_threads()
    torch.set_num_threads(1)  # more would add numbers in another order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _untrained(model_type, vocabulary)
        weights = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 2))
        with torch.enable_grad():
            for ids in tqdm(_batches(languages, steps, draw), desc="world: training", disable=not progress):
                model(ids, labels=ids).loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    finally:
        torch.set_num_threads(threads)
    return model


def _untrained(model_type: str, vocabulary: int) -> Any:
    """Random weights, and zeros that stay zeros in the MLPs."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = AutoConfig.for_model(model_type, vocab_size=vocabulary, **special, **SIZES[model_type])
    model: Any = AutoModelForCausalLM.from_config(config).eval()  # no dropout, in training neither
    for name, weight in model.named_parameters():
        if ".mlp." in name:
            weight.data.zero_()
            weight.requires_grad_(False)
    model.get_input_embeddings().weight.data[:, 0] = COMMON  # otherwise no direction is always positive
    return model


def _batches(
    languages: Sequence[tuple[np.ndarray, np.ndarray]], steps: int, draw: np.random.Generator
) -> Int[Tensor, "step document token"]:
    """Documents of all languages as token ids, each behind the separator."""
    each = -(-BATCH // len(languages))
    rows = [ids[_walks(chain, steps * each, draw)].reshape(steps, each, LENGTH) for chain, ids in languages]
    return torch.from_numpy(np.pad(np.concatenate(rows, 1), ((0, 0), (0, 0), (1, 0))))  # the separator's id is 0
