"""Logits to ids. Each row is chosen by its own sequence's parameters and random stream, whatever else is in the batch.

Order: bias and bans, penalties, the grammar, temperature, min-p, top-k, top-p, typical-p. Scores are of the model's own
distribution, before all of these.
"""

import math
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from trefoil.engine.sequence import Sequence
from trefoil.wire import SamplingParams, TokenScore
from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.launch import runs_triton
from trefoil_kernels.sample import sample

GREEDY_BELOW = 1e-5
CANDIDATES = 1024
"""A truncated choice looks at this many of the likeliest tokens first and at all only where they are not enough."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The token chosen for a sequence."""

    sequence: Sequence
    token: int
    score: TokenScore | None


class Sampler:
    """Never chooses an id of `never`: those the tokenizer cannot decode."""

    def __init__(self, *, never: Seq[int], device: torch.device) -> None:
        self._never = torch.tensor(sorted(never), dtype=torch.int64, device=device)

    def choose(self, logits_NV: Tensor, takers: Seq[Sequence]) -> list[Pick]:
        """One token per row of logits, which are the caller's no more."""
        if not takers:
            return []
        if all(is_plain(taker) for taker in takers) and (native := native_for(logits_NV)):
            tokens = native.rowwise.argmax(logits_NV.index_fill_(1, self._never, -torch.inf)).tolist()
            return [Pick(taker, token, None) for taker, token in zip(takers, tokens, strict=True)]
        logits_NV = logits_NV.float()
        adjusted_NV = logits_NV.index_fill(1, self._never, -torch.inf)
        for logits_V, taker in zip(adjusted_NV, takers, strict=True):
            adjust(logits_V, taker)
        choose = _on_device if runs_triton(adjusted_NV) else _on_host
        tokens = choose(adjusted_NV, takers)
        scores = self._scores(logits_NV, takers, tokens)
        return [Pick(taker, token, score) for taker, token, score in zip(takers, tokens, scores, strict=True)]

    def start(self, logits_NV: Tensor, takers: Seq[Sequence]) -> Tensor:
        """The same for takers that are `unadjusted`, without waiting for the tokens: int64 [N] on the device."""
        return _drawn(logits_NV.index_fill_(1, self._never, -torch.inf), takers)

    def _scores(self, logits_NV: Tensor, takers: Seq[Sequence], tokens: list[int]) -> list[TokenScore | None]:
        scores: list[TokenScore | None] = [None] * len(takers)
        for n, taker in enumerate(takers):
            if taker.params.logprobs is not None:
                (scores[n],) = token_scores(logits_NV[n : n + 1], [tokens[n]], taker.params.logprobs)
        return scores


def is_plain(sequence: Sequence) -> bool:
    """Does the sequence take the likeliest token of the model's own logits, without a score?"""
    params = sequence.params
    return params.temperature < GREEDY_BELOW and params.logprobs is None and not is_adjusted(sequence)


def is_adjusted(sequence: Sequence) -> bool:
    """Does `adjust` change what it chooses from now?"""
    params = sequence.params
    return sequence.num_outputs < params.min_tokens or _forced(sequence) is not None or _is_led(params)


def _on_host(adjusted_NV: Tensor, takers: Seq[Sequence]) -> list[int]:
    tokens: list[int] = adjusted_NV.argmax(-1).tolist()
    for n, taker in enumerate(takers):
        if taker.params.temperature >= GREEDY_BELOW:
            tokens[n] = draw(adjusted_NV[n], taker.params, taker.random.random())
    return tokens


def is_unadjusted(sequence: Sequence) -> bool:
    """Is every token of it chosen from the model's own logits by what the kernel knows, without a score?"""
    params = sequence.params
    is_held = params.min_tokens or params.forced_first_id is not None or params.forced_last_id is not None
    is_known = sequence.beams is None and params.logprobs is None and params.typical_p >= 1
    return is_known and not is_held and not _is_led(params)


def _is_led(params: SamplingParams) -> bool:
    """Does it change logits at every step?"""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.no_repeat_ngram_size
        or params.grammar is not None
    )


def _on_device(adjusted_NV: Tensor, takers: Seq[Sequence]) -> list[int]:
    """All rows by one kernel and one wait; rows that ask for typical-p, which it does not know, by `draw`."""
    tokens: list[int] = _drawn(adjusted_NV, takers).tolist()
    for n, taker in enumerate(takers):
        if taker.params.typical_p < 1 and taker.params.temperature >= GREEDY_BELOW:
            tokens[n] = draw(adjusted_NV[n], taker.params, taker.random.random())
    return tokens


def _drawn(adjusted_NV: Tensor, takers: Seq[Sequence]) -> Tensor:
    """An id for each row, on the device."""
    is_greedy = [taker.params.temperature < GREEDY_BELOW for taker in takers]
    uniforms = [
        0.0 if greedy or taker.params.typical_p < 1 else taker.random.random()
        for greedy, taker in zip(is_greedy, takers, strict=True)
    ]
    columns = [
        (
            0.0 if greedy else taker.params.temperature,
            taker.params.top_k,
            taker.params.top_p,
            taker.params.min_p,
            uniform,
        )
        for greedy, taker, uniform in zip(is_greedy, takers, uniforms, strict=True)
    ]
    on_host = torch.tensor(columns, dtype=torch.float32, pin_memory=adjusted_NV.is_cuda).T.contiguous()
    temperature_N, top_k_N, top_p_N, min_p_N, uniform_N = on_host.to(adjusted_NV.device, non_blocking=True)
    return sample(adjusted_NV, temperature_N, top_k_N.int(), top_p_N, min_p_N, uniform_N)


def token_scores(logits_RV: Tensor, tokens: Seq[int], num_top: int) -> list[TokenScore]:
    """Log-probability, rank and the `num_top` likeliest of each row."""
    logprobs_RV = logits_RV.float().log_softmax(-1)
    own_R1 = logprobs_RV.gather(1, torch.tensor(tokens, device=logits_RV.device)[:, None])
    ranks = ((logprobs_RV > own_R1).sum(-1) + 1).tolist()
    top = logprobs_RV.topk(min(num_top, logits_RV.shape[1]), -1)
    return [
        TokenScore(own, rank, list(zip(ids, values, strict=True)))
        for own, rank, ids, values in zip(
            own_R1[:, 0].tolist(), ranks, top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]


def adjust(logits_V: Tensor, sequence: Sequence) -> None:
    """Bias, bans, penalties and the grammar, in place."""
    params = sequence.params
    for token, bias in params.logit_bias.items():
        logits_V[token] += bias
    if params.repetition_penalty != 1.0:
        _penalise_repetition(logits_V, sequence.ids, params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        _penalise_outputs(logits_V, sequence.ids[sequence.prompt_len :], params)
    if params.no_repeat_ngram_size:
        banned = _repeating(sequence.ids, params.no_repeat_ngram_size)
        logits_V[torch.tensor(banned, dtype=torch.int64, device=logits_V.device)] = -torch.inf
    if sequence.num_outputs < params.min_tokens:
        stops = torch.tensor(params.stop_ids, dtype=torch.int64, device=logits_V.device)
        logits_V[stops] = -torch.inf
    if sequence.guide is not None:
        logits_V.masked_fill_(sequence.guide.forbidden(logits_V.device), -torch.inf)
    forced = _forced(sequence)
    if forced is not None:
        logits_V.fill_(-torch.inf)
        logits_V[forced] = 0.0


def _forced(sequence: Sequence) -> int | None:
    """The token that must come next, where the request says so."""
    params = sequence.params
    if params.forced_first_id is not None and sequence.num_outputs == 0:
        return params.forced_first_id
    if params.forced_last_id is not None and sequence.num_outputs == params.max_tokens - 1:
        return params.forced_last_id
    return None


def draw(logits_V: Tensor, params: SamplingParams, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the truncated distribution's running sum."""
    logits_V = logits_V / params.temperature
    if params.min_p:
        logits_V = logits_V.masked_fill(logits_V < logits_V.max() + math.log(params.min_p), -torch.inf)
    logits, ids = _truncated(logits_V, params)
    sums = (logits - logits.max()).double().exp().cumsum(0)
    at = int(torch.searchsorted(sums, sums[-1] * uniform, right=True))
    at = min(at, len(sums) - 1)
    return at if ids is None else int(ids[at])


def _truncated(logits_V: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """What top-k, top-p and typical-p keep, likeliest first, and their ids; every id in order where none is asked."""
    if not params.top_k and params.top_p >= 1 and params.typical_p >= 1:
        return logits_V, None
    total = logits_V.logsumexp(0)
    count = min(params.top_k or CANDIDATES, len(logits_V))
    logits, ids = logits_V.topk(count)
    is_enough = bool(params.top_k) or bool((logits.logsumexp(0) - total).exp() >= params.top_p)
    if params.typical_p < 1 or not is_enough:
        logits, ids = logits_V.sort(descending=True)
        logits, ids = logits[: params.top_k or None], ids[: params.top_k or None]
    if params.top_p < 1:
        total = logits.logsumexp(0) if params.top_k else total
        probs = (logits - total).exp()
        kept = probs.cumsum(0) - probs < params.top_p
        kept[0] = True
        logits, ids = logits[kept], ids[kept]
    if params.typical_p < 1:
        kept = _typical(logits, params.typical_p)
        logits, ids = logits[kept], ids[kept]
    return logits, ids


def _typical(logits: Tensor, mass: float) -> Tensor:
    """The ids whose surprise is nearest the entropy, up to `mass` (Meister et al., arXiv 2202.00666, eq. 5)."""
    logprobs = logits.log_softmax(0)
    probs = logprobs.exp()
    entropy = -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum()
    order = (-logprobs - entropy).abs().argsort(stable=True)
    is_kept = probs[order].cumsum(0) - probs[order] < mass
    is_kept[0] = True  # also where float32 has no number as small as the mass
    return order[is_kept].sort().values


def _penalise_repetition(logits_V: Tensor, ids: list[int], penalty: float) -> None:
    """Divide positive, multiply negative logits of every id so far (Keskar et al., arXiv 1909.05858, section 4.1)."""
    seen = torch.tensor(sorted(set(ids)), device=logits_V.device)
    own = logits_V[seen]
    logits_V[seen] = torch.where(own > 0, own / penalty, own * penalty)


def _penalise_outputs(logits_V: Tensor, outputs: list[int], params: SamplingParams) -> None:
    """OpenAI's penalties: logit -= count * frequency + (count > 0) * presence, over generated ids."""
    if outputs:
        found = Counter(outputs)
        seen, counts = torch.tensor([list(found), list(found.values())], device=logits_V.device)
        logits_V[seen] -= counts * params.frequency_penalty + params.presence_penalty


def _repeating(ids: list[int], size: int) -> list[int]:
    """Ids that would complete an n-gram which is there already."""
    start = tuple(ids[len(ids) - size + 1 :]) if size > 1 else ()
    if len(ids) < size:
        return []
    return [ids[i + size - 1] for i in range(len(ids) - size + 1) if tuple(ids[i : i + size - 1]) == start]
