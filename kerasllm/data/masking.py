"""Which tokens of a sequence are hidden, and what stands there instead: pure functions of arrays and `Draws`.

[B, T] in all of them: B sequences, filled up to T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kerasllm.data.draws import Batch, Draws

MaskKind = Literal["token", "whole_word", "span"]
LONGEST_SPAN = 10
POSITIONS, LABELS = "masked_positions", "masked_labels"


def masks_per_row(maskable: np.ndarray, share: float) -> np.ndarray:
    """int [B]: `share` of the tokens that may be hidden, bool [B, T], rounded; at least one, where there is any."""
    counts = maskable.sum(axis=1)
    return np.minimum(counts, np.maximum(1, (share * counts + 0.5).astype(np.int64)))


def word_starts(maskable: np.ndarray, goes_on: np.ndarray) -> np.ndarray:
    """int [B, T]: the position where the word of each token begins.

    Args:
        maskable: bool [B, T]; a word does not reach over a token that is not.
        goes_on: bool [B, T], where a token goes on with the word before.
    """
    before = np.pad(maskable[:, :-1], ((0, 0), (1, 0)))
    begins = ~(goes_on & maskable & before)
    return np.maximum.accumulate(np.where(begins, np.arange(begins.shape[1]), 0), axis=1)


def choose_tokens(maskable: np.ndarray, counts: np.ndarray, draw: Draws) -> np.ndarray:
    """bool [B, T]: counts[b] of the tokens of each row, each as likely as the others."""
    order = _random_order(maskable, draw)
    chosen = np.zeros_like(maskable)
    np.put_along_axis(chosen, order, np.arange(order.shape[1]) < counts[:, np.newaxis], axis=1)
    return chosen


def choose_words(maskable: np.ndarray, starts: np.ndarray, counts: np.ndarray, draw: Draws) -> np.ndarray:
    """bool [B, T]: whole words in random order, those left out that would make more than counts[b] tokens.

    Where the first word is longer than that, it alone is chosen.

    Args:
        starts: from `word_starts`.
    """
    rows, (num_rows, length) = np.arange(len(maskable)), maskable.shape
    sizes = np.zeros((num_rows, length), np.int64)
    np.add.at(sizes, (rows[:, np.newaxis], starts), maskable)
    order = _random_order(sizes > 0, draw)
    taken, is_taken = np.zeros(num_rows, np.int64), np.zeros_like(maskable)
    for step in range(int((sizes > 0).sum(axis=1).max(initial=0))):
        word = order[:, step]
        size = sizes[rows, word]
        takes = (size > 0) & (taken + size <= counts)
        is_taken[rows, word] = takes
        taken += size * takes
    is_taken[rows, order[:, 0]] |= (taken == 0) & (counts > 0)
    return np.take_along_axis(is_taken, starts, axis=1) & maskable


def choose_spans(
    maskable: np.ndarray, starts: np.ndarray, counts: np.ndarray, mean: float, draw: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Spans from the beginnings of words on, of random lengths, until counts[b] tokens are chosen; the last one is cut.

    Lengths are geometric, at most `LONGEST_SPAN`. A span ends before a token that may not be hidden or is already.

    Args:
        starts: from `word_starts`.
        mean: of the lengths in tokens, before they are bounded; 1 or more.

    Returns:
        bool [B, T], whether a token is chosen, and int [B, T], where its span begins.

    Reference: [Joshi et al., 2020](https://arxiv.org/abs/1907.10529), section 3.1.
    """
    (num_rows, length), rows = maskable.shape, np.arange(len(maskable))
    lengths = _geometric(mean, draw.apart(1).bits(length))
    is_first = starts == np.arange(length)
    # The beginnings of words first; were they used up, the other tokens would follow.
    order = _random_order(maskable, draw, later=~is_first)
    taken, chosen, spans = (
        np.zeros(num_rows, np.int64),
        np.zeros_like(maskable),
        np.tile(np.arange(length), (num_rows, 1)),
    )
    for step in range(length):
        if (taken >= counts).all():
            break
        start = order[:, step]
        left = np.minimum(lengths[rows, start], counts - taken)
        goes_on = np.ones(num_rows, bool)
        for offset in range(LONGEST_SPAN):
            at = np.minimum(start + offset, length - 1)
            goes_on &= (offset < left) & (start + offset < length) & maskable[rows, at] & ~chosen[rows, at]
            chosen[rows, at] |= goes_on
            spans[rows, at] = np.where(goes_on, start, spans[rows, at])
            taken += goes_on
    return chosen, spans


def replace_tokens(
    token_ids: np.ndarray,
    chosen: np.ndarray,
    units: np.ndarray,
    shares: tuple[float, float],
    mask_id: int,
    ordinary_ids: np.ndarray,
    draw: Draws,
) -> np.ndarray:
    """int32 [B, T]: what stands where tokens were chosen: the mask, another token, or the token itself.

    Args:
        chosen: bool [B, T].
        units: int [B, T], a position whose draw decides for a token, so that a whole span has the same fate.
        shares: of the mask and of other tokens; what is left stays.
        ordinary_ids: int [N], the other tokens, each as likely.
    """
    length = token_ids.shape[1]
    fate = np.take_along_axis(draw.bits(length), units, axis=1)
    bounds = [np.uint64(min(int(share * 2.0**64), 2**64 - 1)) for share in (shares[0], sum(shares))]
    others = ordinary_ids[draw.apart(1).integers(len(ordinary_ids), length)].astype(token_ids.dtype)
    replaced = np.where(fate < bounds[0], token_ids.dtype.type(mask_id), np.where(fate < bounds[1], others, token_ids))
    return np.where(chosen, replaced, token_ids)


def gather_labels(token_ids: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, P] twice: the positions that were chosen in each row, ascending, and the tokens there; 0 where fewer.

    Position 0 must not be chosen. P is 1 or more.
    """
    num = max(1, int(chosen.sum(axis=1).max(initial=0)))
    positions = np.argsort(~chosen, axis=1, kind="stable")[:, :num]
    is_one = np.take_along_axis(chosen, positions, axis=1)
    labels = np.take_along_axis(token_ids, positions, axis=1)
    return (positions * is_one).astype(np.int32), (labels * is_one).astype(np.int32)


@dataclass(frozen=True)
class Masking:
    """Hides tokens of the feature `token_ids`; it adds where, `masked_positions`, and what, `masked_labels`.

    Both are int32 [B, P], 0 where a row has fewer than P. How follows from (seed, epoch, row) alone.

    Args:
        kind: single tokens, whole words or spans.
        share: of the tokens of a row that are hidden.
        mean_span: tokens, for spans.
        shares: see `replace_tokens`.
        mask_id: of the tokenizer.
        special_ids: never hidden, and never put in place of another.
        goes_on: bool [V], which tokens go on with the word before.
    """

    kind: MaskKind
    share: float
    mean_span: float
    shares: tuple[float, float]
    mask_id: int
    special_ids: Sequence[int]
    goes_on: np.ndarray

    @property
    def added(self) -> dict[str, str]:
        """The features that it adds, and their types."""
        return {POSITIONS: "int32", LABELS: "int32"}

    def __call__(self, batch: Batch, rows: np.ndarray, seed: int, epoch: int) -> Batch:
        """A batch with hidden tokens; `rows` are the numbers of its examples in their split, [B]."""
        token_ids, draw = batch["token_ids"], Draws(rows, seed, epoch)
        maskable = ~np.isin(token_ids, list(self.special_ids))
        counts = masks_per_row(maskable, self.share)
        starts = word_starts(maskable, self.goes_on[token_ids])
        units = np.tile(np.arange(token_ids.shape[1]), (len(token_ids), 1))
        if self.kind == "token":
            chosen = choose_tokens(maskable, counts, draw.apart(0))
        elif self.kind == "whole_word":
            chosen = choose_words(maskable, starts, counts, draw.apart(0))
        else:
            chosen, units = choose_spans(maskable, starts, counts, self.mean_span, draw.apart(0))
        ordinary = np.setdiff1d(np.arange(len(self.goes_on)), list(self.special_ids))
        hidden = replace_tokens(token_ids, chosen, units, self.shares, self.mask_id, ordinary, draw.apart(1))
        positions, labels = gather_labels(token_ids, chosen)
        return {**batch, "token_ids": hidden, POSITIONS: positions, LABELS: labels}


def _random_order(candidates: np.ndarray, draw: Draws, later: np.ndarray | None = None) -> np.ndarray:
    """int [B, T]: the positions of each row in random order, candidates first, of these the `later` ones last."""
    bits = draw.bits(candidates.shape[1]) >> np.uint64(2)
    group = np.where(candidates, 0 if later is None else later.astype(np.uint64), np.uint64(2))
    return np.argsort(bits | (group.astype(np.uint64) << np.uint64(62)), axis=1, kind="stable")


def _geometric(mean: float, bits: np.ndarray) -> np.ndarray:
    """Lengths of which n comes with probability (1 - 1/mean)^(n-1) / mean, the rest with `LONGEST_SPAN`."""
    stays = 1.0 - 1.0 / mean
    bounds = [min(int((1.0 - stays**n) * 2.0**64), 2**64 - 1) for n in range(1, LONGEST_SPAN)]
    return 1 + np.searchsorted(np.array(bounds, np.uint64), bits, side="right")
