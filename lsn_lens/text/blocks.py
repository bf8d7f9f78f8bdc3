"""Cut the tokens of one language into packed blocks of equal length."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lsn_lens.text.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Blocks:
    """Packed blocks: consecutive tokens, behind the BOS where blocks begin with one.

    A block that begins with a document has that document's BOS, and gets no second one.

    Attributes:
        tokens: The tokens.
        length: Tokens per block, BOS included.
        edges: Where each block begins in the tokens, and where the last one ends.
        fronted: Which blocks get a BOS that is not in the tokens.
    """

    tokens: Tokens
    length: int
    edges: Int[np.ndarray, "_"]
    fronted: Bool[np.ndarray, "_"]

    def positions(self, rows: range) -> Int[Tensor, "batch pos"]:
        """The place of each token of these blocks in the tokens; a BOS put in front has the place before the block."""
        starts = torch.from_numpy((self.edges[:-1] - self.fronted)[rows.start : rows.stop])
        return starts[:, None] + torch.arange(self.length)

    def read(self, rows: range) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"] | None]:
        """The ids of these blocks, and bytes per token where they were counted."""
        first, last = int(self.edges[rows.start]), int(self.edges[rows.stop])
        own = torch.ones(len(rows), self.length, dtype=torch.bool)
        own[:, 0] = torch.from_numpy(~self.fronted[rows.start : rows.stop])
        ids = torch.full(own.shape, self.tokens.front or 0).masked_scatter(own, self.tokens.read(first, last))
        counts = self.tokens.read_byte_counts(first, last)
        return ids, None if counts is None else torch.zeros_like(ids).masked_scatter(own, counts)

    def documents(self, row: int) -> tuple[int, int]:
        """The first and the last document in a block."""
        return self.tokens.document_of(int(self.edges[row])), self.tokens.document_of(int(self.edges[row + 1]) - 1)


def cut(tokens: Tokens, length: int, max_tokens: int | None) -> Blocks:
    """The blocks of one language, of at most `max_tokens` tokens together; the rest of the tokens is dropped.

    Raises:
        ValueError: Blocks of one token, which would be the BOS alone.
    """
    most = (tokens.n_tokens if max_tokens is None else max_tokens) // length
    if tokens.front is None:
        most = min(most, tokens.n_tokens // length)
        return Blocks(tokens, length, np.arange(most + 1) * length, np.zeros(most, dtype=bool))
    if length == 1:
        raise ValueError("length=1 leaves no room for text behind the BOS: set Layout(bos=False), or a larger length.")
    if max_tokens is None:
        most = tokens.n_tokens
    edges, fronted, ids = [0], list[bool](), np.memmap(tokens.path, dtype=np.int32, mode="r")
    while len(fronted) < most and edges[-1] < len(ids):
        lacks = bool(ids[edges[-1]] != tokens.front)
        if edges[-1] + length - lacks > len(ids):
            break
        edges.append(edges[-1] + length - lacks)
        fronted.append(lacks)
    return Blocks(tokens, length, np.array(edges), np.array(fronted, dtype=bool))
