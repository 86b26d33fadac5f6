"""What is wrong with a run, with or without patches.

The measure is the model alone: the whole sequence of a request, given to it at once, has to have
the tokens that were generated, and the log probs, at every place. Beyond that, counts have to agree
and an engine that has nothing to do has to have what it started with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatron_patch.testing.releases import parameters_of

from . import alone, draws
from .company import COMPANY
from .configuration import Configuration, Plan
from .observing import Observation, Record
from .running import stop_words
from .serving import Room

if TYPE_CHECKING:
    from torch import Tensor

#: By how much a logit or a log prob may be off: sums come out a little different in other batches.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Complaint:
    """Something that is wrong."""

    kind: str
    request: int | None
    """The index of the request, or None for the engine."""
    text: str
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        of = "" if self.request is None else f"request {self.request}: "
        # Where an exception came from tells of it, and is no part of what is compared.
        places = [str(self.facts[name]) for name in ("place", "during") if name in self.facts]
        where = f" ({', '.join(places)})" if self.kind == "exception" and places else ""
        return f"{self.kind}: {of}{self.text}{where}"


@dataclass(frozen=True)
class Case:
    """A configuration and one run of it."""

    configuration: Configuration
    observation: Observation

    @property
    def record(self) -> Record:
        return self.observation.record

    @property
    def told(self) -> bool:
        """Whether the model alone can tell which tokens are right: it takes float32, for one."""
        guest = COMPANY.get(self.configuration.company or "")
        others = guest is not None and guest.changes_tokens
        return self.observation.alone and not others and self.configuration.dtype == "float32"

    def parts(self, index: int) -> list[Record]:
        """The parts of a request as the engine handed them out."""
        found = self.record["requests"][index]
        parts: list[Record] = found["parts"] if found else []
        return parts

    def rows(self, index: int, part: int, until: int | None = None) -> list[tuple[int, int, int]]:
        """(position, count, weights' version) of a part's tokens in each pass up to ``until``."""
        return [
            (offset, count, forward.version)
            for number, forward in enumerate(self.observation.forwards)
            if until is None or number <= until
            for row, of, offset, count in forward.rows
            if (row, of) == (index, part)
        ]

    def origin(self, index: int, place: int) -> tuple[int, int] | None:
        """The part of a generated token, and the forward pass that it came from."""
        parts = self.parts(index)
        places = [
            (number, at)
            for number, part in enumerate(parts)
            for at in range(len(part["generated_tokens"]))
        ]
        if not 0 <= place < len(places):
            return None
        number, at = places[place]
        for part, of, forward in self.observation.generated[index]:
            if (part, of) == (number, at):
                return number, forward
        return None

    def logits(self, index: int, place: int) -> Tensor | None:
        """The logits that the model returned in the engine for a generated token, if known."""
        origin = self.origin(index, place)
        if origin is None or not 0 <= origin[1] < len(self.observation.forwards):
            return None
        part, number = origin
        forward = self.observation.forwards[number]
        # A part that comes back has in its prompt what was generated before.
        position, at = len(self.configuration.requests[index].prompt) + place - 1, 0
        for row, (of, of_part, offset, count) in enumerate(forward.rows):
            if (of, of_part) == (index, part) and offset <= position < offset + count:
                one = self.configuration.only_last and not self.configuration.speculative
                at = row if one else at + position - offset
                return None if forward.logits is None else forward.logits[at]
            at += count
        return None

    def skipped(self, index: int, part: int) -> int:
        """Tokens at the beginning of a part that the model was not given: they were cached."""
        rows = self.rows(index, part)
        return min((offset for offset, _, _ in rows), default=0)

    def paused(self, index: int) -> bool:
        """Whether a request was left out of a forward pass between two that it was in."""
        numbers = [
            number
            for number, forward in enumerate(self.observation.forwards)
            if any(row == index for row, *_ in forward.rows)
        ]
        return bool(numbers) and numbers[-1] - numbers[0] >= len(numbers)

    def chunks(self, index: int, part: int) -> int:
        """In how many pieces the prompt of a part was given to the model."""
        length = len(self.parts(index)[part]["prompt_tokens"])
        return sum(offset < length for offset, _, _ in self.rows(index, part))


def complaints(configuration: Configuration, observation: Observation) -> list[Complaint]:
    """All that is wrong with a run."""
    case = Case(configuration, observation)
    return [*_engine(case), *_requests(case)]


def _engine(case: Case) -> Iterator[Complaint]:
    record = case.record
    error = record["error"]
    if error is not None:
        yield Complaint("exception", None, f"{error['type']}: {error['text']}", dict(error))
    for index, part, position in _states(case):
        text = f"the Mamba state before token {position} is not that of the tokens before"
        yield Complaint("state", index, text, {"part": part, "position": position})
    for text in case.observation.invariants:
        yield Complaint("blocks", None, text)
    if any(forward.astray for forward in case.observation.forwards):
        yield Complaint("astray", None, "keys and values of tokens go to another block than theirs")
    if draws.repeated(case.observation.draws):
        yield Complaint("draw", None, "random numbers were used a second time")
    if error is None and "end" in record:
        free, start = record["end"]["free blocks"], case.observation.free_at_start
        if free is not None and free != start:
            text = f"{free} of {start} blocks are free in an idle engine"
            yield Complaint("blocks", None, text)
        if record["end"]["requests"]:
            text = f"an idle engine has {record['end']['requests']} requests"
            yield Complaint("requests left", None, text)


def _states(case: Case) -> list[tuple[int, int, int]]:
    """Of each request, the first one that is wrong."""
    found: dict[int, tuple[int, int, int]] = {}
    if case.configuration.dtype == "float32":  # in others they are not exact
        for forward in case.observation.forwards:
            for state in forward.states:
                found.setdefault(state[0], state)
    return list(found.values())


def _requests(case: Case) -> Iterator[Complaint]:
    if "requests" not in case.record:
        return
    ended = case.record["error"] is not None
    for index, plan in enumerate(case.configuration.requests):
        why, refused = refusal(case, plan), case.record["refused"].get(str(index))
        if why is not None and (case.parts(index) or not ended):
            yield from _refused(case, index, why)
        if why is not None and ended and _is_kept(case, index):
            yield Complaint("no answer", index, f"the engine kept what it had refused: {why}")
        if why is not None:
            continue
        if ended:  # then it is a matter of chance what else is complete
            status = case.parts(index)[-1]["status"] if case.parts(index) else None
            if status == "COMPLETED":
                yield from _counts(case, index, plan)
            elif status == "FAILED":
                yield from _ending(case, index, plan)
            elif status is not None:  # what is missing may have come, but what is too much not
                yield from (
                    item
                    for item in _counts(case, index, plan)
                    if item.kind == "merge" or item.facts["off"] > 0
                )
            yield from _tokens(case, index, plan)
            continue
        if refused is not None:
            text = f"refused with {refused['type']}: {refused['text']}"
            yield Complaint("status", index, text, dict(refused))
            continue
        if not case.parts(index):
            yield Complaint("no answer", index, "the engine handed out nothing")
            continue
        yield from _ending(case, index, plan)
        yield from _counts(case, index, plan)
        yield from _values(case, index, plan)


def _is_kept(case: Case, index: int) -> bool:
    """Whether a request was refused, and no step of the engine handed it out until it ended."""
    parts = case.parts(index)
    told = any(index in step[1] for step in case.record["steps"])
    if not parts or parts[-1]["status"] != "FAILED" or told:
        return False
    return all(kind != "FAIL" for kind, _ in parts[-1]["events"])


def refusal(case: Case, plan: Plan) -> str | None:
    """Why a request can never be served, and has to be refused; None if it can be."""
    return _room(case).refusal(plan.length, plan.num_tokens, plan.sampling)


def _room(case: Case) -> Room:
    configuration = case.configuration
    return Room(
        case.observation.limits,
        configuration.longest,
        configuration.block_size,
        configuration.chunked,
        configuration.speculative,
    )


def _refused(case: Case, index: int, why: str) -> Iterator[Complaint]:
    """Complain unless a request that cannot be served was answered with a status and an error."""
    if str(index) in case.record["refused"]:
        return
    parts = case.parts(index)
    if not parts:
        yield Complaint("no answer", index, f"the engine handed out nothing, and {why}")
    elif parts[-1]["status"] != "FAILED":
        text = f"{parts[-1]['status']} with {generated(case, index)}, and {why}"
        yield Complaint("not refused", index, text, {"why": why})
    elif not any(kind.startswith("ERROR") for part in parts for kind, _ in part["events"]):
        yield Complaint("no error", index, f"no event says why it was refused: {why}")


def generated(case: Case, index: int) -> list[int]:
    """All tokens of a request."""
    return [token for part in case.parts(index) for token in part["generated_tokens"]]


def _ending(case: Case, index: int, plan: Plan) -> Iterator[Complaint]:
    parts, tokens = case.parts(index), generated(case, index)
    status = parts[-1]["status"]
    if status != "COMPLETED":
        yield Complaint("status", index, f"{status}: {parts[-1]['events']}")
        return
    facts = {"parts": len(parts), "tokens": len(tokens)}
    most = _room(case).tokens(plan.length, plan.num_tokens)
    word, last = stop_words(case.configuration, plan)
    stopped = word and any(
        tokens[at : at + len(word)] == word for at in range(len(tokens) - len(word) + 1)
    )
    if len(tokens) > most:
        text = f"{len(tokens)} tokens, not {most}"
        yield Complaint("too many tokens", index, text, facts)
    for place, token in enumerate(tokens[:-1]):
        if token == last:
            text = f"goes on after its termination id {last} at {place}: {tokens}"
            yield Complaint("goes on", index, text, {**facts, "place": place})
            return
    if word:
        for end in range(len(word), len(tokens)):
            if tokens[end - len(word) : end] == word:
                text = f"goes on after its stop word {word} at {end}: {tokens}"
                yield Complaint("goes on", index, text, {**facts, "stop": word, "at": end})
                return
    if len(tokens) < most and not stopped and tokens[-1:] != [last]:
        if word and _trims() and _may_be_trimmed(case, index, plan, word):
            return
        text = f"ends after {len(tokens)} of {most} tokens for no reason: {tokens}"
        missing = most - len(tokens)
        yield Complaint("ends early", index, text, {**facts, "missing": missing})


def _trims() -> bool:
    """Whether the release takes stop words out of the answer."""
    from megatron.core.inference.sampling_params import SamplingParams

    return "detokenize_stop_sequence" in parameters_of(SamplingParams)


def _may_be_trimmed(case: Case, index: int, plan: Plan, word: list[int]) -> bool:
    """Whether a stop word could have come next, as far as the passes and the model alone tell."""
    last = len(case.parts(index)) - 1
    passes, kept = case.rows(index, last), len(case.parts(index)[last]["generated_tokens"])
    if not case.configuration.speculative and len(passes) <= kept:
        return False  # each pass gave a token that is still there
    if not plan.greedy or not case.told or case.configuration.updates:
        return True
    before = [*plan.prompt, *generated(case, index)]
    rows = reference(case, (*before, *word))[len(before) - 1 : -1]
    best = rows.max(-1).values
    chosen = [float(row[token]) for row, token in zip(rows, word, strict=True)]
    return all(value >= float(top) - TOLERANCE for value, top in zip(chosen, best, strict=True))


def _counts(case: Case, index: int, plan: Plan) -> Iterator[Complaint]:
    # Before 0.16 there is one part.
    merged = case.record["requests"][index].get("merged") or case.parts(index)[0]
    facts = {"parts": len(case.parts(index))}
    if "place" in merged:
        text = f"merge() raises {merged['type']}: {merged['text']}"
        yield Complaint("merge", index, text, {**facts, **merged})
        return
    if plan.log_probs is None:
        return
    lists = [("generated_log_probs", "generated_tokens", 0)]
    if plan.log_probs == "all":
        lists.append(("prompt_log_probs", "prompt_tokens", 1))
    if plan.top_n:
        lists += [
            (name.replace("log_probs", "top_n_logprobs"), of, less) for name, of, less in lists
        ]
    for name, of, less in lists:
        found, right = len(merged[name] or ()), len(merged[of] or ()) - less
        if found != right:
            text = f"{found} {name} for {right + less} {of}"
            yield Complaint("count", index, text, {**facts, "list": name, "off": found - right})


def _values(case: Case, index: int, plan: Plan) -> Iterator[Complaint]:
    """Compare tokens, logits and log probs with those of the model alone."""
    if not case.told:
        return
    wrong = list(_tokens(case, index, plan))
    yield from wrong
    if not wrong:  # otherwise what follows is no wonder
        tokens = generated(case, index)
        yield from _drawn(case, index, plan, tokens)
        yield from _log_probs(case, index, plan, [*plan.prompt, *tokens])


def _tokens(case: Case, index: int, plan: Plan) -> Iterator[Complaint]:
    """The first token that is not what the model alone says, or whose logits are not."""
    if not case.told:
        return
    parts, tokens = case.parts(index), generated(case, index)
    sequence = [*plan.prompt, *tokens]
    for place, (part, token) in enumerate(_places(parts)):
        versions = _versions(case, index, part, place, parts)
        if versions is None:
            continue
        row = reference(case, tuple(sequence), versions)[len(plan.prompt) - 1 + place]
        if plan.meant and not draws.allows(row, plan.sampling, token, TOLERANCE):
            right = int(row.argmax())
            text = f"token {place} is {token}, the model alone has {right}: {tokens}"
            facts = {"part": part, "place": place, "skipped": case.skipped(index, part)}
            yield Complaint("token", index, text, facts)
            return  # what comes after it depends on it
        logits = case.logits(index, place)
        off = 0.0 if logits is None else float((logits - row).abs().max())
        if not off <= TOLERANCE:
            text = f"the logits of token {place} are off by {off:.4f} from the model alone"
            facts = {"part": part, "place": place, "skipped": case.skipped(index, part)}
            yield Complaint("logits", index, text, facts)
            return


def _drawn(case: Case, index: int, plan: Plan, tokens: list[int]) -> Iterator[Complaint]:
    """Complain of a token that was not drawn with its request's parameters from its own logits."""
    if plan.greedy or not plan.meant:
        return
    for place, token in enumerate(tokens):
        origin, logits = case.origin(index, place), case.logits(index, place)
        if origin is None or logits is None:
            text = f"token {place} comes from no forward pass: {tokens}"
            yield Complaint("draw", index, text, {"place": place})
            return
        right = draws.probabilities(logits, plan.sampling)
        found = [draw for draw in case.observation.draws if draw.passes == origin[1] + 1]
        if not draws.drew(found, right, token):
            text = f"token {place}, {token}, was not drawn with {plan.sampling}: {tokens}"
            yield Complaint("draw", index, text, {"part": origin[0], "place": place})
            return


def _log_probs(case: Case, index: int, plan: Plan, sequence: list[int]) -> Iterator[Complaint]:
    if plan.log_probs is None or not sequence[1:]:
        return
    parts = case.parts(index)
    versions = {version for part in range(len(parts)) for *_, version in case.rows(index, part)}
    if len(versions) > 1:
        return
    version = versions.pop() if versions else 0
    rows = reference(case, tuple(sequence), ((0, version),)).log_softmax(-1)
    right = [float(rows[at, token]) for at, token in enumerate(sequence[1:])]
    split = len(plan.prompt) - 1
    # Before 0.16 the first one that is generated may be in the list of the prompt.
    found = [
        *(parts[0]["prompt_log_probs"] or ()),
        *(value for part in parts for value in part["generated_log_probs"] or ()),
    ]
    if plan.log_probs == "generated":
        right = right[split:]
    if len(found) != len(right):
        return  # that is complained of where counts are
    for at, (one, other) in enumerate(zip(found, right, strict=True)):
        if not abs(one - other) <= TOLERANCE:
            of = at - split if plan.log_probs != "generated" else at
            text = f"log prob {of} is {one:.4f}, the model alone has {other:.4f}"
            facts = {"place": of, "parts": len(parts)}
            yield Complaint("log prob", index, text, facts)
            return


def _places(parts: list[Record]) -> Iterator[tuple[int, int]]:
    for number, part in enumerate(parts):
        for token in part["generated_tokens"]:
            yield number, token


def _versions(
    case: Case, index: int, part: int, place: int, parts: list[Record]
) -> alone.Versions | None:
    """The versions of the weights that a generated token comes from; None if they are not known."""
    if not case.configuration.updates:
        return alone.RELEASED
    before = sum(len(item["generated_tokens"]) for item in parts[:part])
    forwards = {(of, at): forward for of, at, forward in case.observation.generated[index]}
    until = forwards.get((part, place - before))
    return None if until is None else alone.versions(case.rows(index, part, until)) or None


def reference(
    case: Case, sequence: tuple[int, ...], versions: alone.Versions = alone.RELEASED
) -> Tensor:
    """Logits of the model alone, of all places of a sequence: (tokens, vocabulary), float32."""
    return alone.logits(case.configuration, case.observation, sequence, versions)
