"""What correctness patches change on purpose although the released run is right, by the cause."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .comparing import Difference
from .observing import Record
from .oracles import TOLERANCE, Case, reference
from .running import stop_words

ROUNDING = 1e-4

#: What ``merge()`` puts together of the parts of a request.
LISTS = (
    "tpot",
    "prompt_log_probs",
    "generated_log_probs",
    "prompt_top_n_logprobs",
    "generated_top_n_logprobs",
)


@dataclass(frozen=True)
class Intended:
    """A difference that a patch makes on purpose, or cannot avoid."""

    patch: str
    why: str
    covers: Callable[[Case, Sequence[Difference]], bool]
    """Whether all differences between the released and the patched run are of this kind."""
    single: bool = False
    """Each difference can be judged by itself, whatever others there are."""


def _single(patch: str, why: str, is_one: Callable[[Case, Difference], bool]) -> Intended:
    """An entry whose differences are judged one by one, with ``is_one``."""

    def covers(case: Case, differences: Sequence[Difference]) -> bool:
        return all(is_one(case, difference) for difference in differences)

    return Intended(patch, why, covers, single=True)


def recognise(case: Case, differences: Sequence[Difference]) -> Intended | None:
    """The entry that explains all ``differences``, if there is one. ``case`` is the released run.

    Differences of entries that are ``single`` may come along with it, or with each other.
    """
    single = [item for item in INTENDED if item.single]
    rest = [
        difference
        for difference in differences
        if not any(item.covers(case, [difference]) for item in single)
    ]
    if not rest:
        return next((item for item in single if item.covers(case, differences[:1])), None)
    return next((item for item in INTENDED if not item.single and item.covers(case, rest)), None)


def _is_rounding(difference: Difference) -> bool:
    if difference.kind == "outputs[].digest":
        return True
    left, right = difference.left, difference.right
    both = isinstance(left, float) and isinstance(right, float)
    return both and abs(left - right) <= ROUNDING


def _one_token_at_a_time(case: Case, differences: Sequence[Difference]) -> bool:
    """Some step had a prompt, or the rest of one, of a single token."""
    for forward in case.observation.forwards:
        for index, part, offset, count in forward.rows:
            parts = case.parts(index)
            if part < len(parts) and count == 1 and offset < len(parts[part]["prompt_tokens"]):
                return all(map(_is_rounding, differences))
    return False


def _is_unasked(case: Case, difference: Difference) -> bool:
    """Requests that want no log probs got some, as others want them, and now get other ones."""
    place = re.fullmatch(
        r"requests\[(\d+)\]\.(merged|parts\[\d+\])\.(prompt|generated)_log_probs", difference.path
    )
    left, right = difference.left, difference.right
    if place is None or not isinstance(left, list):
        return False
    plan = case.configuration.requests[int(place[1])]
    if plan.log_probs is not None:
        return False
    word, _ = stop_words(case.configuration, plan)
    if left == [] and right is None:
        return bool(word)  # all that was filed is that of the step that ends the request
    right = right or []  # None: a part for which no step has filed any
    if not isinstance(right, list):
        return False
    if len(left) < len(right):
        # Of a prompt's first answer, the released run keeps as many as there are tokens to
        # generate, from the front: the last ones are missing.
        return len(left) <= plan.num_tokens and right[: len(left)] == left
    # The patched run has fewer: by the tokens that the last step accepted beyond those wanted, by
    # the tokens of a stop word, and by one for the step that ends the request.
    excess = len(left) - len(right)
    return (
        (place[3] == "generated" or bool(word))  # a prompt that was not scored has room for more
        and 0 < excess <= case.configuration.speculative + (len(word) + 1 if word else 0)
        and left[: len(right)] == right
    )


def _is_where_a_chunk_ends(case: Case, difference: Difference) -> bool:
    """The log probs of a prompt differ where a chunk of it begins, and nowhere else.

    Those of a part that begins with generated tokens, and of requests that want none, show nothing.
    """
    place = re.fullmatch(
        r"requests\[(\d+)\]\.(?:merged|parts\[(\d+)\])\.prompt_log_probs\[(\d+)\]",
        difference.path,
    )
    if place is None:
        return False
    index, part = int(place[1]), int(place[2] or 0)
    begins = {offset for offset, _, _ in case.rows(index, part)}
    if int(place[3]) + 1 in begins:
        return True
    unasked = case.configuration.requests[index].log_probs is None
    return unasked and any(_is_own(case, index, begin, difference.right) for begin in begins)


def _is_own(case: Case, index: int, begin: int, found: object) -> bool:
    """Whether this is the log prob that the model alone gives the prompt's token at a place.

    Where nobody asks for them, a list may have those of one chunk only.
    """
    prompt = case.configuration.requests[index].prompt
    if not case.told or case.configuration.updates or not 0 < begin < len(prompt):
        return False
    right = reference(case, prompt)[begin - 1].log_softmax(-1)[prompt[begin]]
    return isinstance(found, float) and abs(found - float(right)) <= TOLERANCE


def _is_first_generated(case: Case, difference: Difference) -> bool:
    """The first generated token's log prob moves from the end of a list to the head of another."""
    place = re.fullmatch(
        r"requests\[(\d+)\]\.parts\[0\]\.(prompt|generated)_log_probs", difference.path
    )
    left, right = difference.left, difference.right
    if place is None or not isinstance(left, list) or not isinstance(right, list):
        return False
    if case.configuration.requests[int(place[1])].log_probs is None:
        return False
    if "merged" in case.record["requests"][int(place[1])]:
        return False  # from 0.16 on they are where they belong
    return left[:-1] == right if place[2] == "prompt" else bool(right) and right[1:] == left


def _has_begun_again(case: Case, difference: Difference) -> bool:
    """Lists of a request without wanted log probs, whose prompt begins again after a suspension."""
    place = re.match(
        r"requests\[(\d+)\]\.(?:merged|parts\[0\])\.(?:prompt|generated)_log_probs",
        difference.path,
    )
    if place is None or case.configuration.suspension != "recompute":
        return False
    index = int(place[1])
    if case.configuration.requests[index].log_probs is not None:
        return False
    return sum(offset == 0 for offset, _, _ in case.rows(index, 0)) > 1


def _is_kept(case: Case, difference: Difference) -> bool:
    """A request that came back still has its stop words and its status."""
    place = re.fullmatch(
        r"requests\[(\d+)\]\.(?:parts\[(\d+)\]|merged(?=\.status))\.(status|stop_word_ids)",
        difference.path,
    )
    if place is None or difference.left is not None or place[2] == "0":
        return False
    return bool(difference.right == case.parts(int(place[1]))[0][place[3]])


def _is_put_together(case: Case, difference: Difference) -> bool:
    """A merged request has what a later part than the first has."""
    place = re.match(r"requests\[(\d+)\]\.merged\.(\w+)", difference.path)
    if place is None or "requests" not in case.record:
        return False
    request: Record = case.record["requests"][int(place[1])]
    name = place[2]
    if "merged" not in request:
        return False
    if request["merged"].get("type") == "TypeError":
        # merge() raised. Where the engine has ended, too, no oracle complains of that.
        return case.record["error"] is not None
    first, *others = request["parts"]
    if name not in LISTS or difference.left is not None:
        return False
    if first["generated_tokens"] or first[name] is not None:
        return False
    found = [part[name] for part in others if part[name] is not None]
    if name.startswith("prompt"):
        return difference.right in found
    if name == "tpot":
        return bool(difference.right == sum(found))
    return bool(difference.right == [value for values in found for value in values])


def _is_another_reason(case: Case, difference: Difference) -> bool:
    """A request that was refused for something else is told that it has too few blocks, too."""
    place = re.fullmatch(r"requests\[\d+\]\.(?:merged|parts\[0\])\.events", difference.path)
    left, right = difference.left, difference.right
    if place is None or not isinstance(left, list) or not isinstance(right, list):
        return False
    errors, more = (
        [event for event in events if event[0].startswith("ERROR")] for events in (left, right)
    )
    if not errors or more[:-1] != errors:
        return False
    rest = [event for event in right if event != more[-1]]
    return rest == left and str(more[-1][1]).startswith("BlockOverflowError")


def _other_evictions(case: Case, differences: Sequence[Difference]) -> bool:
    """Before the first forward pass that differs, a request was paused or evicted for its blocks.

    Either there were cached blocks that nobody held, or others held some blocks of the evicted
    request, which its eviction did not free. Greedy answers are as they were.
    """
    configuration, apart = case.configuration, first_apart(case, differences)
    return any(
        shortage.passes <= apart
        and (
            (configuration.prefix == "LRU" and shortage.cached > 0)
            or (configuration.prefix is not None and shortage.evicted > 0 and shortage.shared > 0)
        )
        for shortage in case.observation.shortages
    ) and all(_follows_from_evictions(case, item) for item in differences)


def first_apart(case: Case, differences: Sequence[Difference]) -> int:
    """The number of the first forward pass that differs; how many passes there are if none does."""
    found = [len(case.observation.forwards)]
    for item in differences:
        place = re.match(r"outputs(?:\[(\d+)\])?", item.path)
        if place is not None and place[1] is not None:
            found.append(int(place[1]))
        elif place is not None and isinstance(item.left, list) and isinstance(item.right, list):
            pairs = enumerate(zip(item.left, item.right, strict=False))
            shorter = min(len(item.left), len(item.right))
            found.append(next((at for at, (one, other) in pairs if one != other), shorter))
    return min(found)


def _follows_from_evictions(case: Case, difference: Difference) -> bool:
    """When the model runs, for whom, and what is drawn may differ; a greedy answer may not."""
    path = difference.path
    if path == "end.evicted" or path.startswith(("outputs", "steps")):
        return True
    if path == "end.sampling":
        return any(not plan.greedy for plan in case.configuration.requests)
    place = re.match(r"requests\[(\d+)\]\.(?:(parts)|merged\.(\w+))", path)
    if place is None:
        return False
    plan, name = case.configuration.requests[int(place[1])], place[3]
    if place[2] or name in ("events", "kv_cache_epoch", "policy_epoch"):
        return True
    if name in ("prompt_log_probs", "generated_log_probs") and plan.log_probs is None:
        return True  # a request has those of the steps in which others want some
    if name == "generated_text" and _joined(difference.left) == _joined(difference.right):
        return True  # the text of each part is made alone
    if name == "prompt_tokens" or name == "status":
        return False
    return not plan.greedy or (name != "generated_tokens" and _is_rounding(difference))


def _joined(text: object) -> str:
    return str(text).replace(" ", "")


INTENDED = (
    Intended(
        "lru-prefix-cache",
        "paused requests get blocks that are cached and nobody holds, and a block that requests "
        "share is released with the last of them: others are paused and evicted, more or fewer",
        _other_evictions,
    ),
    _single(
        "zero-token-logprobs",
        "the log probs of a step are cut at the other end, and on 0.17 along with the speculative "
        "tokens that are too many, also for requests that have not asked for any",
        _is_unasked,
    ),
    _single(
        "stop-word-logprobs",
        "the log probs of a stop word go with its tokens, also for requests that have not asked "
        "for any; those of the step that ends such a request are not filed "
        "(stopped-request-logprobs)",
        _is_unasked,
    ),
    _single(
        "resumed-stop-words",
        "a request that comes back has stop words and a status, also if it ends at none",
        _is_kept,
    ),
    _single(
        "merged-logprobs",
        "a merged request has the times of all its parts, and log probs that it has not asked for",
        _is_put_together,
    ),
    _single(
        "first-token-logprobs",
        "the first generated token's log prob is in the list of those, also where an engine that "
        "has ended shows nothing wrong",
        _is_first_generated,
    ),
    _single(
        "prompt-chunk-logprobs",
        "the log prob where a chunk begins is that of the prompt's own token, in any list",
        _is_where_a_chunk_ends,
    ),
    _single(
        "recomputed-prompt-logprobs",
        "the lists of a prompt that begins again begin again, also those that nobody has asked for",
        _has_begun_again,
    ),
    _single(
        "request-block-limit",
        "a request that is refused for its length is told, too, that it has too few blocks",
        _is_another_reason,
    ),
    Intended(
        "one-token-prefill",
        "a prompt of one token goes to the attention of prompts, whose sums round otherwise than "
        "those of decoding",
        _one_token_at_a_time,
    ),
)
