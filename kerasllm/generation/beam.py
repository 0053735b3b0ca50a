"""Beam search as one in-graph loop. Beams share a cache, and a mask says which of its slots each one descends from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

IMPOSSIBLE = -1e5
"""Below every score that a real hypothesis can have, and small enough to leave float32 its digits."""

TINY = 1e-37
"""The least probability that is told from 0, close to the least of float32."""

PIECE = 40
"""Values in a piece of `top_k`; vocabularies that it divides need no padding."""

WINDOW = 8
"""Positions that the cache grows by: attention goes over all slots that there are, used or not."""

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]


class Hypotheses(NamedTuple):
    """The n best answers of each example, best first; those that were cut before they ended come last."""

    token_ids: tf.Tensor  # int32 [B, N, max_length], without the start token, 0 after the end token
    scores: tf.Tensor  # float32 [B, N], log-probability divided by the length penalty


class _Search(NamedTuple):
    """What the loop carries from one position to the next."""

    position: tf.Tensor  # int32 scalar
    token_ids: tf.Tensor  # int32 [B, N, max_length], alive
    log_probabilities: tf.Tensor  # float32 [B, N], alive
    ended_token_ids: tf.Tensor  # int32 [B, N, max_length]
    ended_scores: tf.Tensor  # float32 [B, N]
    ancestry: tf.Tensor  # bool [B, N, slots], the slots of the cache that a hypothesis consists of
    cache: Any


def length_penalty(length: tf.Tensor, alpha: float) -> tf.Tensor:
    r"""$((5 + \text{length}) / 6)^\alpha$, [Wu et al., 2016](https://arxiv.org/abs/1609.08144), equation 14."""
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


def beam_search(
    step: Step,
    empty_cache: Callable[[int], Any],
    max_lengths: tf.Tensor,
    beam_size: int,
    start_id: int,
    end_id: int,
    alpha: float = 0.6,
) -> Hypotheses:
    r"""Keeps the `beam_size` likeliest beginnings of each answer until as many have ended and none alive is likelier.

    Nothing is copied from beam to beam. At position p the N hypotheses fill slots p * N to p * N + N - 1, and
    the mask that a step is given names, for each of them, the slots of its own past. An example that is
    complete, or has reached its greatest length, is left as it is, so an answer does not depend on the others of the
    batch; the loop ends with the last example.

    Args:
        step: `step(token_ids [B, N], mask bool [B, 1, N, slots], position, slot, cache) -> (logits [B, N, V], cache)`.
        empty_cache: `empty_cache(slots) -> cache`, a nest of tensors [B, H, slots, K] for the tokens to come.
        max_lengths: int32 [B], tokens of the longest answer; what has not ended by then is taken as it is.
        beam_size: N; 1 is greedy search.
        start_id, end_id: tokens before the first and after the last of an answer.
        alpha: exponent of the length penalty.

    Returns:
        The `beam_size` best answers of each example with their scores.
    """
    search = _begin(max_lengths, beam_size, empty_cache(0))

    def goes_on(*values) -> tf.Tensor:
        return tf.reduce_any(~_is_complete(_Search(*values), max_lengths, alpha))

    def advance(*values) -> _Search:
        before = _Search(*values)
        after = _advance(before, step, beam_size, start_id, end_id, alpha)
        return _keep_where(_is_complete(before, max_lengths, alpha), before, after)

    def advance_by_window(*values) -> _Search:
        begun = _with_more_slots(_Search(*values), empty_cache(WINDOW * beam_size))
        end = begun.position + WINDOW

        def goes_on_here(*values) -> tf.Tensor:
            return (_Search(*values).position < end) & goes_on(*values)

        return _Search(*tf.while_loop(goes_on_here, advance, begun, parallel_iterations=1))

    search = _Search(*tf.while_loop(goes_on, advance_by_window, search, _shapes(search), parallel_iterations=1))
    return _best(search, max_lengths, beam_size, alpha)


def _begin(max_lengths: tf.Tensor, beam_size: int, cache: Any) -> _Search:
    """Before the first token: of equal hypotheses only the first counts."""
    batch_size, max_length = tf.shape(max_lengths)[0], tf.reduce_max(max_lengths)
    nothing = tf.zeros([batch_size, beam_size, max_length], tf.int32)
    only_first = tf.where(tf.range(beam_size) == 0, 0.0, IMPOSSIBLE)
    return _Search(
        position=tf.constant(0),
        token_ids=nothing,
        log_probabilities=tf.tile(only_first[tf.newaxis], [batch_size, 1]),
        ended_token_ids=nothing,
        ended_scores=tf.fill([batch_size, beam_size], IMPOSSIBLE),
        ancestry=tf.zeros([batch_size, beam_size, 0], tf.bool),
        cache=cache,
    )


def _shapes(search: _Search) -> _Search:
    """The shape of each part of a search, with any number of slots."""

    def growing(tensor: tf.Tensor) -> tf.TensorShape:
        return tf.TensorShape([*tensor.shape[:2], None, *tensor.shape[3:]])

    shapes = tf.nest.map_structure(lambda tensor: tensor.shape, search)
    return shapes._replace(ancestry=growing(search.ancestry), cache=tf.nest.map_structure(growing, search.cache))


def _with_more_slots(search: _Search, cache: Any) -> _Search:
    """The search with room for more tokens, that of an empty cache."""
    slots = tf.shape(tf.nest.flatten(cache)[0])[2]
    unused = tf.zeros(tf.concat([tf.shape(search.ancestry)[:2], [slots]], axis=0), tf.bool)
    grown = tf.nest.map_structure(lambda old, new: tf.concat([old, new], axis=2), search.cache, cache)
    return search._replace(ancestry=tf.concat([search.ancestry, unused], axis=2), cache=grown)


def _is_complete(search: _Search, max_lengths: tf.Tensor, alpha: float) -> tf.Tensor:
    """bool [B]: N answers have ended and nothing alive is likelier, or there is no room for another token.

    The number alone would not do: of a sure beginning, N unlikely ends can come before the right one. What is alive
    only becomes less likely, so an example that is complete stays so.
    """
    have_ended = tf.reduce_all(search.ended_scores > IMPOSSIBLE, axis=1)
    lengths = tf.math.count_nonzero(search.ended_token_ids, axis=2)
    likeliest = tf.reduce_max(search.ended_scores * length_penalty(lengths, alpha), axis=1)
    return (have_ended & (likeliest >= search.log_probabilities[:, 0])) | (search.position >= max_lengths)


def _keep_where(complete: tf.Tensor, before: _Search, after: _Search) -> _Search:
    """`after`, but `before` for the results of examples that were complete."""
    results = ("token_ids", "log_probabilities", "ended_token_ids", "ended_scores")
    kept = {}
    for name in results:
        old, new = getattr(before, name), getattr(after, name)
        kept[name] = tf.where(tf.reshape(complete, [-1] + [1] * (new.shape.rank - 1)), old, new)
    return after._replace(**kept)


def _advance(search: _Search, step: Step, beam_size: int, start_id: int, end_id: int, alpha: float) -> _Search:
    """One more token for every hypothesis."""
    position, slot = search.position, search.position * beam_size
    slots = tf.shape(search.ancestry)[2]
    own_slot = tf.range(slots)[tf.newaxis] == slot + tf.range(beam_size)[:, tf.newaxis]  # [N, slots]
    ancestry = search.ancestry | own_slot
    last = tf.where(position > 0, search.token_ids[:, :, tf.maximum(position - 1, 0)], start_id)
    logits, cache = step(last, ancestry[:, tf.newaxis], position, slot, search.cache)
    log_probabilities, parents, token_ids = _likeliest(search.log_probabilities, logits, 2 * beam_size)
    here = tf.range(tf.shape(search.token_ids)[2]) == position
    extended = tf.where(here, token_ids[:, :, tf.newaxis], tf.gather(search.token_ids, parents, batch_dims=1))

    # Of the 2N likeliest, those among the first N that end are answers; at least N of the others go on.
    ends = token_ids == end_id
    is_answer = ends & (tf.range(2 * beam_size) < beam_size)
    answer_scores = tf.where(is_answer, log_probabilities / length_penalty(position + 1, alpha), IMPOSSIBLE)
    ended_scores, ended_token_ids = _merge(
        (search.ended_scores, search.ended_token_ids), (answer_scores, extended), beam_size
    )
    alive, kept = tf.math.top_k(tf.where(ends, IMPOSSIBLE, log_probabilities), beam_size)
    return _Search(
        position=position + 1,
        token_ids=tf.gather(extended, kept, batch_dims=1),
        log_probabilities=alive,
        ancestry=tf.gather(ancestry, tf.gather(parents, kept, batch_dims=1), batch_dims=1),
        ended_token_ids=ended_token_ids,
        ended_scores=ended_scores,
        cache=cache,
    )


def _likeliest(log_probabilities, logits, count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The `count` likeliest continuations of all hypotheses of an example together.

    Args:
        log_probabilities: [B, N], of the hypotheses.
        logits: [B, N, V], of their next tokens.

    Returns:
        Log-probabilities, parents (0 to N - 1) and token ids, each [B, count].
    """
    width = min(count, logits.shape[2])
    top, token_ids = top_k(tf.nn.softmax(logits), width)  # [B, N, width]
    candidates = tf.math.log(tf.maximum(top, TINY)) + log_probabilities[:, :, tf.newaxis]
    batch = tf.shape(candidates)[0]
    best, flat = tf.math.top_k(tf.reshape(candidates, [batch, -1]), count)
    return best, flat // width, tf.gather(tf.reshape(token_ids, [batch, -1]), flat, batch_dims=1)


def top_k(probabilities: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k greatest of the last axis and their indices, as `tf.math.top_k` gives them, three times as fast on a CPU.

    The axis is cut into pieces. The k pieces with the greatest maxima hold the k greatest values, and the maxima are
    found by a vectorised reduction, where TensorFlow's own operation walks through all values one by one.

    Args:
        probabilities: [B, N, V], none negative.
    """
    size = probabilities.shape[2]
    if size <= PIECE * k:
        return tf.math.top_k(probabilities, k)
    probabilities = tf.pad(probabilities, [[0, 0], [0, 0], [0, -size % PIECE]], constant_values=-1.0)
    shape = tf.shape(probabilities)
    pieces = tf.reshape(probabilities, [shape[0], shape[1], -1, PIECE])
    _, chosen = tf.math.top_k(tf.reduce_max(pieces, axis=3), k)  # [B, N, k]
    chosen = tf.sort(chosen, axis=2)  # of equal values the first must come first
    values = tf.reshape(tf.gather(pieces, chosen, batch_dims=2), [shape[0], shape[1], k * PIECE])
    best, index = tf.math.top_k(values, k)
    return best, tf.gather(chosen, index // PIECE, batch_dims=2) * PIECE + index % PIECE


def _merge(ended, candidates, beam_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The best `beam_size` of two sets of scores [B, any] and token ids [B, any, max_length]."""
    scores, best = tf.math.top_k(tf.concat([ended[0], candidates[0]], axis=1), beam_size)
    return scores, tf.gather(tf.concat([ended[1], candidates[1]], axis=1), best, batch_dims=1)


def _best(search: _Search, max_lengths: tf.Tensor, beam_size: int, alpha: float) -> Hypotheses:
    """The answers that ended, and after them, where there are too few, those that reached the greatest length."""
    length = tf.minimum(search.position, max_lengths)[:, tf.newaxis]
    scores = tf.concat([search.ended_scores, search.log_probabilities / length_penalty(length, alpha)], axis=1)
    token_ids = tf.concat([search.ended_token_ids, search.token_ids], axis=1)
    has_ended = tf.range(2 * beam_size) < beam_size
    rank = tf.where(has_ended, scores, scores + IMPOSSIBLE / 2)
    _, best = tf.math.top_k(tf.where(scores > IMPOSSIBLE, rank, IMPOSSIBLE * 2), beam_size)
    return Hypotheses(tf.gather(token_ids, best, batch_dims=1), tf.gather(scores, best, batch_dims=1))
