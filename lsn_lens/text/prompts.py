"""Prompts: which lists of texts are accepted, and which tokens a prompt becomes."""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from lsn_lens.text.tokens import separator_id


def texts_of(name: str, texts: Any) -> list[str]:
    """The texts of a list, tuple, array, pandas Series or generator, in order, as a list.

    Raises:
        ValueError: One string, a mapping, a set (which has no order), or an element that is not text or cannot be
            encoded; the message calls the argument `name`.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name}={texts!r} is one string: give a list of strings.")
    if isinstance(texts, Mapping):
        raise ValueError(
            f"{name} is a mapping with the keys {list(texts)[:5]}: give a list of texts, for example "
            "list(texts.values()) where each is one text, or call once for each key."
        )
    if isinstance(texts, set | frozenset):
        raise ValueError(f"{name} is a set, which has no order: give a list of texts.")
    if getattr(texts, "ndim", 1) != 1:
        raise ValueError(f"{name} is a table of {getattr(texts, 'ndim', 0)} dimensions: give one column, as a list.")
    try:
        found = list(texts)
    except TypeError as error:
        raise ValueError(f"{name} is {type(texts).__name__}: give a list of texts.") from error
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{name}: number {number} (from 0) is {text!r}, no text. Leave it out, or give a text.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}: number {number} (from 0) has {text[error.start]!r} at character {error.start}, half of a "
                "surrogate pair, which cannot be encoded. It was cut or decoded wrongly: read it again, or drop it "
                'with text.encode("utf-8", "ignore").decode().'
            ) from error
    return [str(text) for text in found]


def as_chat(tokenizer: Any, prompts: list[str], chat: bool | str, separator: str) -> tuple[list[str], str]:
    """Prompts as a user's turns in the tokenizer's chat template, each followed by the beginning of an answer.

    Args:
        tokenizer: The model's tokenizer.
        prompts: What the user says.
        chat: True, or a system prompt; False gives everything back unchanged.
        separator: Of prompts that are no chat.

    Returns:
        The prompts, and their separator: "none" for a chat, whose template says what it begins with.

    Raises:
        ValueError: A tokenizer without a template, or a template that refuses these turns.
    """
    if chat is False:
        return prompts, separator
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"chat={chat!r}: the tokenizer of {name!r} has no chat template. Take a model that was trained on chats, "
            "set tokenizer.chat_template, or write the turns into the prompts."
        )
    first = [{"role": "system", "content": chat}] if isinstance(chat, str) else []
    turns = [[*first, {"role": "user", "content": prompt}] for prompt in prompts]
    try:
        whole = [tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in turns]
    except TemplateError as error:
        raise ValueError(f"chat={chat!r}: the chat template of {name!r} refuses it: {error}") from error
    return whole, "none"


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokenizer's special tokens: id -> its spelling, for example `<s>`."""
    found = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return found | dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))


def prompt_ids(tokenizer: Any, text: str, separator: str = "bos") -> list[int]:
    """The tokens that a model reads for a prompt: the separator, then the tokens of the text.

    A separator that the text spells itself, as chat templates do, is not repeated. A tokenizer without a BOS token
    gets its EOS token in front, unless the text begins with a special token (such as `<|im_start|>`): such a template
    defines the beginning itself.

    Args:
        tokenizer: The model's tokenizer.
        text: The prompt.
        separator: "bos" (the "eos" of tokenizers without one), "eos" or "none".
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*front(tokenizer, ids, separator), *ids]


def front(tokenizer: Any, ids: list[int], separator: str = "bos") -> list[int]:
    """The tokens in front of a prompt's own tokens: the separator, or none where the prompt begins with it."""
    start = separator_id(tokenizer, separator)
    if start is None or ids[:1] == [start]:
        return []
    stands_in = separator == "bos" and tokenizer.bos_token_id is None
    unsaid = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}  # begin no template
    if stands_in and ids and ids[0] in special_tokens(tokenizer).keys() - unsaid:
        return []
    return [start]
