"""The model and its pages: runs a plan and says what was picked."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from trefoil.engine.adapters import Adapters
from trefoil.engine.beams import grow_all
from trefoil.engine.flight import Flight
from trefoil.engine.graphs import Capture, DecodeGraphs, graph_sizes
from trefoil.engine.memory import MemoryPlan
from trefoil.engine.paged_attend import PagedAttend
from trefoil.engine.sampler import Pick, Sampler, is_unadjusted, token_scores
from trefoil.engine.scheduler import Chunk, Plan
from trefoil.engine.search import Beams, Branch
from trefoil.engine.sequence import Sequence
from trefoil.engine.step import StepInputs
from trefoil.engine.tapes import DecodeTapes
from trefoil.wire import TokenScore
from trefoil_kernels.cpu.library import Native
from trefoil_kernels.page_write import copy_pages, new_pages
from trefoil_kernels.token_logprobs import row_chunks
from trefoil_models.attend import ReadsBothWays, Span, packed_rows
from trefoil_models.checkpoint import EncoderDecoder, Model
from trefoil_models.slices import Slices


@dataclass(frozen=True, slots=True)
class Picks:
    """What a step brought: tokens, continuations of beams, and scores of prompt tokens in order."""

    tokens: list[Pick]
    branches: list[tuple[Beams[Sequence], list[Branch]]]
    prompts: list[tuple[Sequence, list[TokenScore]]]


class Runner:
    """Owns the weights, the pages and the input buffers of one engine."""

    def __init__(
        self,
        model: Model,
        memory: MemoryPlan,
        *,
        max_rows: int,
        max_num_seqs: int,
        never: Seq[int],
        capture: Capture | None = None,
        recorder: Native | None = None,
        slices: Slices | None = None,
    ) -> None:
        """With `capture`, decode steps run as graphs; a page more than planned is theirs. With `recorder`, as tapes.

        `slices`: what of a whole model this one is.
        """
        weight = model.lm_head.weight
        self._model = model
        self.adapters = Adapters(model, slices)
        self._pages = [
            new_pages(
                memory.num_pages + (capture is not None),
                memory.page_size,
                site.kv_heads,
                site.head_dim,
                is_latent=site.is_latent,
                dtype=memory.dtype,
                device=weight.device,
            )
            for site in model.sites
        ]
        self._inputs = StepInputs(
            max_rows=max_rows,
            max_sequences=max_num_seqs,
            max_pages=-(-memory.max_model_len // memory.page_size),
            max_source_pages=-(-memory.max_source_len // memory.page_size),
            page_size=memory.page_size,
            device=weight.device,
            spare_page=memory.num_pages,
            reads_both_ways=isinstance(model, ReadsBothWays),
        )
        self._sampler = Sampler(never=never, device=weight.device)
        self._never = torch.tensor(sorted(never), dtype=torch.int64, device=weight.device)
        self._graphs = capture and self._captured(capture, min(max_num_seqs, max_rows))
        self._tapes = (
            None if recorder is None else DecodeTapes(recorder, model, self.adapters, self._inputs, self._pages)
        )

    @torch.inference_mode()
    def run(self, plan: Plan) -> Picks:
        """Encode the plan's inputs, compute its rows, copy its pages, choose its tokens."""
        self._copy(plan.first_copies)
        if self._graphs is not None and self._graphs.can_run(plan):
            return self._replayed(plan, self._graphs.logits(plan))
        if self._tapes is not None and self._tapes.can_run(plan):
            logits_NV = self._tapes.logits(plan)
            if logits_NV is not None:
                return self._replayed(plan, logits_NV)
        rows, attend = self._inputs.build(plan, self._pages)
        if plan.encodes:
            self._encode(plan.encodes, attend)
        with self.adapters.chosen([chunk.sequence.slot for chunk in plan.chunks for _ in range(chunk.num_rows)]):
            hidden_TM = self._model(rows, attend)
        self._copy(plan.copies)
        starts = attend.packing.starts
        takers = [(taker, starts[n + 1] - 1) for n, chunk in enumerate(plan.chunks) for taker in chunk.takers]
        at = torch.tensor([row for _, row in takers], dtype=torch.int64, device=hidden_TM.device)
        logits_NV = self._model.lm_head.logits(hidden_TM[at])
        return Picks(
            *self._choose(logits_NV, [taker for taker, _ in takers]),
            [
                (chunk.sequence, self._prompt_scores(chunk, hidden_TM[starts[n] : starts[n + 1]]))
                for n, chunk in enumerate(plan.chunks)
                if chunk.sequence.wants_prompt_scores
            ],
        )

    def span_of(self, ids: Seq[int]) -> Span | None:
        """Of a prompt whose context the model reads both ways."""
        return self._model.span_of(ids) if isinstance(self._model, ReadsBothWays) else None

    def refusal(self, ids: Seq[int]) -> str | None:
        """Why the model cannot go on from these ids, if it cannot."""
        if not isinstance(self._model, ReadsBothWays) or self._model.span_of(ids) is not None:
            return None
        return f"the prompt lacks what parts it from an answer, such as the tokens {self._model.shortest_prompt}"

    @property
    def shortest_prompt(self) -> list[int]:
        """Ids that any such model takes."""
        return self._model.shortest_prompt if isinstance(self._model, ReadsBothWays) else [0, 0]

    def can_start(self, plan: Plan) -> bool:
        """Can the step be left to the device: a graph, whose tokens need nothing of the host?"""
        takers = (taker for chunk in plan.chunks for taker in chunk.takers)
        is_plain = not plan.first_copies and not plan.copies and all(len(chunk.takers) == 1 for chunk in plan.chunks)
        return self._graphs is not None and is_plain and self._graphs.can_run(plan) and all(map(is_unadjusted, takers))

    @torch.inference_mode()
    def start(self, plan: Plan, before: Flight | None = None) -> Flight:
        """Run a plan as `can_start` allows, without waiting; its ids are the tokens of the step `before`."""
        assert self._graphs is not None, "only graphs are started"
        ids_N = None
        if before is not None:
            place = {id(chunk.sequence): n for n, chunk in enumerate(before.plan.chunks)}
            at = [place[id(chunk.sequence)] for chunk in plan.chunks]
            ids_N = _rows(before.tokens_N, at)
        logits_NV = self._graphs.logits(plan, ids_N)
        return Flight(plan, self._sampler.start(logits_NV, [chunk.sequence for chunk in plan.chunks]))

    def _encode(self, sequences: Seq[Sequence], attend: PagedAttend) -> None:
        """Let the encoder read inputs, and each decoder site write what it will recall of them to pages."""
        sources = [sequence.source for sequence in sequences]
        with self.adapters.chosen([sequence.slot for sequence in sequences for _ in sequence.source]):
            cast(EncoderDecoder, self._model).encode(*packed_rows(sources, attend.slots_T.device), attend)

    @torch.inference_mode()
    def _captured(self, capture: Capture, most: int) -> DecodeGraphs:
        return DecodeGraphs(self._model, self._inputs, self._pages, sizes=graph_sizes(most), capture=capture)

    def _replayed(self, plan: Plan, logits_NV: Tensor) -> Picks:
        self._copy(plan.copies)
        takers = [(taker, n) for n, chunk in enumerate(plan.chunks) for taker in chunk.takers]
        if len(takers) != len(logits_NV):
            logits_NV = logits_NV[torch.tensor([n for _, n in takers], dtype=torch.int64, device=logits_NV.device)]
        return Picks(*self._choose(logits_NV, [taker for taker, _ in takers]), [])

    def _choose(
        self, logits_NV: Tensor, takers: Seq[Sequence]
    ) -> tuple[list[Pick], list[tuple[Beams[Sequence], list[Branch]]]]:
        """A token for each who takes one alone, and what each search grows to."""
        alone = [n for n, taker in enumerate(takers) if taker.beams is None]
        searching = [n for n, taker in enumerate(takers) if taker.beams is not None]
        grown = grow_all(_rows(logits_NV, searching), [takers[n] for n in searching], self._never)
        return self._sampler.choose(_rows(logits_NV, alone), [takers[n] for n in alone]), list(grown)

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        if copies:
            sources_C, targets_C = torch.tensor(list(zip(*copies, strict=True)), device=self._pages[0].k_PSGD.device)
            for pages in self._pages:
                copy_pages(pages, sources_C, targets_C)

    def _prompt_scores(self, chunk: Chunk, hidden_RM: Tensor) -> list[TokenScore]:
        """Scores of the prompt tokens that this chunk's rows predict and that were not given before."""
        sequence = chunk.sequence
        first = max(chunk.start, sequence.num_scored - 1)
        labels = sequence.ids[first + 1 : min(chunk.end + 1, sequence.prompt_len)]
        hidden_RM = hidden_RM[first - chunk.start :][: len(labels)]
        scores: list[TokenScore] = []
        for rows in row_chunks(len(labels), len(self._model.lm_head.weight)):
            logits = self._model.lm_head.logits(hidden_RM[rows])
            scores += token_scores(logits, labels[rows], sequence.params.prompt_logprobs or 0)
        return scores


def _rows(logits_NV: Tensor, numbers: list[int]) -> Tensor:
    """These rows, without a copy where they are all."""
    return logits_NV if len(numbers) == len(logits_NV) else logits_NV[torch.tensor(numbers, dtype=torch.int64)]
