"""A scheduler and a runner: requests in, events out, one step at a time. No process, no socket, no text."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import structlog

from trefoil import wire
from trefoil.engine.adapters import BASE, Loaded
from trefoil.engine.flight import Flight
from trefoil.engine.grammar import GrammarError, Grammars
from trefoil.engine.pages import source_salt
from trefoil.engine.runner import Picks, Runner
from trefoil.engine.sampler import Pick
from trefoil.engine.scheduler import Plan, Scheduler
from trefoil.engine.search import Beams, Branch
from trefoil.engine.sequence import Sequence
from trefoil_models.config_keys import CheckpointError

log = structlog.get_logger()

MASK64 = (1 << 64) - 1


class Generator:
    """Everything one engine generates. `max_source_len`: 0 for a decoder. `length_pivot`: see ModelConfig."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        max_model_len: int,
        vocab_size: int,
        max_source_len: int = 0,
        length_pivot: int | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self.scheduler, self.runner = scheduler, runner
        self.max_model_len, self.vocab_size = max_model_len, vocab_size
        self.max_source_len = max_source_len
        self._length_pivot = length_pivot
        self._grammars = grammars
        self._arrivals = 0
        self._flight: Flight | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def submit(self, request: wire.Request) -> list[wire.Event]:
        """Queue a request; a refusal where it can never run."""
        why = self._refusal(request)
        if why is not None:
            return [wire.Failed(request.id, why)]
        assert isinstance(request, wire.Generate)
        self._arrivals += 1
        is_search = request.params.beams > 1
        try:
            sequences = [self._sequence(request, index) for index in range(1 if is_search else request.params.n)]
        except GrammarError as error:
            return [wire.Failed(request.id, f"the grammar cannot be followed: {error}")]
        self.scheduler.totals.prompt_tokens += len(request.ids) + len(request.source)
        leader, *siblings = sequences
        leader.siblings = siblings
        if is_search:
            leader.beams = Beams(request.params, [leader])
        self.scheduler.add(leader)
        return []

    def abort(self, command: wire.Abort) -> None:
        """Forget a request, or one answer of it."""
        for sequence in list(self.scheduler.sequences()):
            # a search has no answers before its end
            index = sequence.index if sequence.beams is None else None
            if sequence.request_id == command.id and command.index in (None, index):
                self._drop(sequence)

    def load_adapter(self, command: wire.LoadAdapter) -> None:
        """Take an adapter in beside those that run; one that cannot be used is told to whoever asks for it."""
        busy = {sequence.slot for sequence in self.scheduler.sequences()}
        try:
            self.runner.adapters.load(command.name, Path(command.folder), busy=busy)
        except CheckpointError as error:
            log.warning("adapter_refused", adapter=command.name, why=str(error))
            self.runner.adapters.refuse(command.name, f"the adapter {command.name} cannot be used: {error}")
        else:
            log.info("adapter_loaded", adapter=command.name)

    def unload_adapter(self, command: wire.UnloadAdapter) -> None:
        """Forget an adapter; what runs with it ends in order."""
        self.runner.adapters.unload(command.name)

    def step(self) -> list[wire.Event]:
        """Advance every running sequence by one turn.

        Decode steps that need nothing of the host are started one ahead: the device goes on while tokens are told.
        """
        if self._flight is None:
            plan = self.scheduler.plan()
            if not self.runner.can_start(plan):
                return self._ran(plan)
            self._flight = self._start(plan)
        return self._landed(self._flight)

    def stats(self) -> wire.Stats:
        """Gauges and totals as they stand."""
        scheduler = self.scheduler
        totals = scheduler.totals
        return wire.Stats(
            running=len(scheduler.running),
            waiting=scheduler.num_waiting,
            pages_used=scheduler.pool.num_used,
            pages_total=scheduler.pool.num_pages,
            slots_filled=sum(sequence.computed for sequence in scheduler.running),
            prefix_queries=totals.prefix_queries,
            prefix_hits=totals.prefix_hits,
            preemptions=totals.preemptions,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
        )

    def check_books(self) -> None:
        """Raise AssertionError where pages or sequences went astray."""
        self.scheduler.check_books()

    def _ran(self, plan: Plan) -> list[wire.Event]:
        """What a step brings that the host waits for."""
        picks = self.runner.run(plan)
        self.scheduler.commit(plan)
        finished = [chunk.sequence for chunk in plan.chunks if not chunk.sequence.wants_tokens]
        return [
            *self._prompt_events(picks),
            *self._token_events(picks.tokens),
            *(event for beams, branches in picks.branches for event in self._beam_events(beams, branches)),
            *self._scored_events(finished),
        ]

    def _start(self, plan: Plan, before: Flight | None = None) -> Flight:
        flight = self.runner.start(plan, before)
        self.scheduler.commit(plan)
        return flight

    def _landed(self, flight: Flight) -> list[wire.Event]:
        """What a step under way brings, after the next one was started."""
        ahead = self.scheduler.plan_ahead(flight.plan)
        self._flight = None if ahead is None else self._start(ahead, flight)
        events = list(self._token_events(flight.land()))
        if ahead is not None:
            self.scheduler.name(ahead)
        if not self.scheduler.running:
            self._flight = None  # its sequences have ended
        return events

    def _refusal(self, request: wire.Request) -> str | None:
        """Why a request can never run, if it cannot."""
        if not isinstance(request, wire.Generate):
            return "this model only generates"
        params = request.params
        if not request.ids or len(request.ids) + params.max_tokens > self.max_model_len:
            return f"{len(request.ids)} prompt tokens do not fit {self.max_model_len}"
        if bool(request.source) != bool(self.max_source_len) or len(request.source) > self.max_source_len:
            return f"an input of {len(request.source)} tokens for an encoder that takes up to {self.max_source_len}"
        if max(request.ids + request.source) >= self.vocab_size or min(request.ids + request.source) < 0:
            return f"token ids must be below {self.vocab_size}"
        if request.adapter is not None and isinstance(why := self.runner.adapters.find(request.adapter), str):
            return why
        if params.grammar is not None and (self._grammars is None or params.beams > 1):
            return "this engine follows no grammar, or none with beams"
        if lack := self.runner.refusal(request.ids):
            return lack
        return self._beams_refusal(request) if params.beams > 1 else None

    def _beams_refusal(self, request: wire.Generate) -> str | None:
        """The same for a search, whose beams share no more than the prompt in the worst case."""
        params, pool = request.params, self.scheduler.pool
        if params.n > params.beams:
            return f"{params.n} answers of {params.beams} beams"
        if params.beams > min(self.scheduler.max_num_seqs, self.scheduler.max_num_batched_tokens):
            return f"{params.beams} beams are more than the {self.scheduler.max_num_seqs} sequences that run at once"
        trunk = len(request.ids) // pool.page_size
        each = pool.pages_for(len(request.ids) + params.max_tokens) - trunk
        if pool.pages_for(len(request.source)) + trunk + params.beams * each > pool.num_pages:
            return f"{params.beams} beams of {params.max_tokens} tokens do not fit the KV cache"
        return None

    def _sequence(self, request: wire.Generate, index: int) -> Sequence:
        params = request.params
        seed = secrets.randbits(64) if params.seed is None else params.seed & MASK64
        adapter = Loaded(BASE, 0) if request.adapter is None else self.runner.adapters.find(request.adapter)
        assert isinstance(adapter, Loaded)
        salt = self._salt(len(request.ids), adapter)
        return Sequence(
            request_id=request.id,
            index=index,
            ids=list(request.ids),
            prompt_len=len(request.ids),
            params=params,
            priority=request.priority,
            arrival=self._arrivals,
            random=np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64))),
            salt=source_salt(request.source, salt) if request.source else salt,
            span=self.runner.span_of(request.ids),
            source=list(request.source),
            slot=adapter.slot,
            guide=None if params.grammar is None or self._grammars is None else self._grammars.guide(params.grammar),
        )

    def _salt(self, prompt_len: int, adapter: Loaded) -> bytes:
        """What besides its ids decides a prompt's keys: only prompts of one salt share pages.

        An adapter makes other keys, and so do rotary angles that depend on the prompt's length.
        """
        pivot = self._length_pivot
        length = prompt_len if pivot is not None and prompt_len > pivot else 0
        return b"%d %d" % (length, adapter.serial) if length or adapter.serial else b""

    def _drop(self, sequence: Sequence) -> None:
        for leader in self.scheduler.sequences():
            if sequence in leader.siblings:
                leader.siblings.remove(sequence)
                return
        self.scheduler.finish(sequence)

    def _prompt_events(self, picks: Picks) -> Iterator[wire.Event]:
        for sequence, scores in picks.prompts:
            sequence.num_scored += len(scores)
            if scores:
                yield wire.PromptScores(sequence.request_id, scores)

    def _token_events(self, picks: list[Pick]) -> Iterator[wire.Event]:
        failed: set[str] = set()
        for pick in picks:
            sequence = pick.sequence
            if sequence.request_id in failed:
                continue
            sequence.ids.append(pick.token)
            self.scheduler.totals.generated_tokens += 1
            scores = [pick.score] if pick.score else []
            yield wire.Tokens(sequence.request_id, sequence.index, [pick.token], scores)
            is_stop = pick.token in sequence.params.stop_ids
            guide = sequence.guide
            if guide is not None and not is_stop and not sequence.has_forced_first_only:
                guide.take(pick.token)
            if guide is not None and guide.error is not None:
                failed.add(sequence.request_id)
                self.abort(wire.Abort(sequence.request_id))
                yield wire.Failed(sequence.request_id, f"the grammar cannot be followed any further: {guide.error}")
            elif is_stop or (guide is not None and guide.is_done):
                yield self._done(sequence, "stop", pick.token if is_stop else None)
            elif sequence.num_outputs >= sequence.params.max_tokens:
                yield self._done(sequence, "length", None)

    def _beam_events(self, beams: Beams[Sequence], branches: list[Branch]) -> Iterator[wire.Event]:
        """A search goes on in silence; at its end come the best answers, whole."""
        self.scheduler.totals.generated_tokens += len(branches)
        if not beams.is_done:
            self.scheduler.branch(beams, branches)
            return
        first = beams.members[0]
        request_id, cached_len, admitted_at = first.request_id, first.cached_len, first.admitted_at
        for member in beams.members:
            self.scheduler.finish(member)
        for index, answer in enumerate(beams.answers[: beams.params.n]):
            yield wire.Tokens(request_id, index, answer.ids, answer.scores)
            reason = "length" if answer.stop_id is None else "stop"
            yield wire.Done(request_id, index, reason, answer.stop_id, cached_len, admitted_at, answer.score)
        for index in range(len(beams.answers), beams.params.n):  # so much is banned that there are no more
            yield wire.Done(request_id, index, "length", None, cached_len, admitted_at)

    def _scored_events(self, sequences: list[Sequence]) -> Iterator[wire.Event]:
        for sequence in sequences:
            if not sequence.num_left:
                yield self._done(sequence, "length", None)

    def _done(self, sequence: Sequence, reason: str, stop_id: int | None) -> wire.Done:
        self.scheduler.finish(sequence)
        return wire.Done(
            sequence.request_id, sequence.index, reason, stop_id, sequence.cached_len, sequence.admitted_at
        )
