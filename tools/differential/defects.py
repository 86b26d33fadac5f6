"""What is known to be wrong with a release, with and without patches, recognised by its cause.

Each has a predicate on what was observed. A complaint that none explains is a finding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_patch.backports import SERIES
from megatron_patch.testing.version import core_release

from . import slots
from .comparing import Difference
from .configuration import VOCABULARY, Plan
from .observing import Filed
from .oracles import Case, Complaint, refusal
from .running import stop_words

RELEASE = core_release()
#: For each patch of the series, the releases that need it.
NEEDED = {patch.id: SpecifierSet(patch.releases) for patch in SERIES}


@dataclass(frozen=True)
class Defect:
    """Something that is wrong with releases, whether a patch of this package mends it or not."""

    name: str
    releases: str
    why: str
    explains: Callable[[Case, Complaint], bool]
    """Whether a complaint of a run comes from this defect, by what was observed."""
    mended_by: tuple[str, ...] = ()
    """Ids of the patches that mend the defect, each on its releases; empty if no patch does."""

    def is_mended(self, applied: Collection[str]) -> bool:
        """Whether a run with the patches ``applied`` has to be without the defect."""
        return bool(self.mended_by) and all(
            name in applied for name in self.mended_by if RELEASE in NEEDED[name]
        )


def recognise(case: Case, complaint: Complaint) -> Defect | None:
    """The defect that a complaint comes from, if one is known."""
    for defect in DEFECTS:
        if (
            RELEASE in SpecifierSet(defect.releases)
            and not defect.is_mended(case.observation.patches)
            and defect.explains(case, complaint)
        ):
            return defect
    return None


def _is_list(complaint: Complaint, *names: str) -> bool:
    return complaint.kind == "count" and complaint.facts["list"] in names


VALUES = ("token", "logits", "log prob")
LOG_PROBS = ("generated_log_probs", "prompt_log_probs")
TOP_N = ("generated_top_n_logprobs", "prompt_top_n_logprobs")


def _plan(case: Case, complaint: Complaint) -> Plan | None:
    """The plan of the request that the complaint is about."""
    return None if complaint.request is None else case.configuration.requests[complaint.request]


def _of_prompt_log_probs(case: Case, complaint: Complaint) -> int | None:
    """The request's index, if it wants its prompt's log probs and the complaint is of log probs."""
    plan = _plan(case, complaint)
    if plan is None or plan.log_probs != "all" or complaint.kind not in ("count", "log prob"):
        return None
    return complaint.request


def _cached_prompt(case: Case, complaint: Complaint) -> bool:
    index = _of_prompt_log_probs(case, complaint)
    # When it comes, not when it comes back: then it is computed afresh.
    return index is not None and case.skipped(index, 0) > 0


def _cut_prompt(case: Case, complaint: Complaint) -> bool:
    index = _of_prompt_log_probs(case, complaint)
    return index is not None and case.chunks(index, 0) > 1


def _prompt_that_begins_again(case: Case, complaint: Complaint) -> bool:
    """A suspension that recomputes came between the chunks of a prompt."""
    index = complaint.request
    if index is None or case.configuration.suspension != "recompute":
        return False
    if not _is_list(complaint, *LOG_PROBS, *TOP_N) and complaint.kind != "log prob":
        return False
    begun = [offset == 0 for offset, _, _ in case.rows(index, 0)]
    return sum(begun) > 1


def _first_of_the_prompt(case: Case, complaint: Complaint) -> bool:
    """The list of the prompt has one log prob too many, which the generated tokens' list lacks."""
    index = complaint.request
    if index is None or not _is_list(complaint, *LOG_PROBS):
        return False
    part = case.parts(index)[0]
    of_generated, of_prompt = (len(part[name] or ()) for name in LOG_PROBS)
    if of_prompt != len(part["prompt_tokens"]) or of_generated + 1 != len(part["generated_tokens"]):
        return False
    expected = {LOG_PROBS[0]: -1, LOG_PROBS[1]: 1}
    return int(complaint.facts["off"]) == expected[str(complaint.facts["list"])]


def _top_n_of_a_chunk(case: Case, complaint: Complaint) -> bool:
    """There is one too many for each step that had a chunk of the prompt and gave no token."""
    plan, index = _plan(case, complaint), complaint.request
    if index is None or plan is None or plan.log_probs != "generated":
        return False
    if not case.configuration.chunked or not _is_list(complaint, TOP_N[0]):
        return False
    off = int(complaint.facts["off"])
    for filed in case.observation.filed[index]:
        more = filed.grown[TOP_N[0]] - filed.grown["generated_tokens"]
        if more and not (more == 1 and _is_chunk(case, index, filed)):
            return False
        off -= more
    return int(complaint.facts["off"]) > 0 and off == 0


def _is_chunk(case: Case, index: int, filed: Filed) -> bool:
    """Whether a forward pass had tokens of a request's prompt, but not the last one."""
    length = len(case.parts(index)[filed.part]["prompt_tokens"])
    return not filed.tokens and any(
        (of, part) == (index, filed.part) and offset + count < length
        for of, part, offset, count in case.observation.forwards[filed.consumed].rows
    )


def _trimmed_stop_word(case: Case, complaint: Complaint) -> bool:
    """All log probs that are too many came with the last two steps, no more than the word has."""
    plan, index = _plan(case, complaint), complaint.request
    if index is None or plan is None or plan.stop is None:
        return False
    if not _is_list(complaint, LOG_PROBS[0], TOP_N[0]):
        return False
    word, _ = stop_words(case.configuration, plan)
    name, off = str(complaint.facts["list"]), int(complaint.facts["off"])
    more = [
        filed.grown[name] - filed.grown["generated_tokens"]
        for filed in case.observation.filed[index]
    ]
    return 0 < off <= len(word) and sum(more[-2:]) == off and not any(more[:-2])


def _stopped_at_once(case: Case, complaint: Complaint) -> bool:
    """A request that had no token yet was in the step, or has got none from it."""
    if complaint.kind != "exception" or complaint.facts["type"] != "IndexError":
        return False
    if not str(complaint.facts["place"]).endswith(":post_process_requests"):
        return False
    configuration = case.configuration
    # With asynchronous scheduling the tokens are of the one before the last.
    last = case.observation.forwards[-2 if configuration.scheduling == "async" else -1 :]
    for index in {index for forward in last for index, *_ in forward.rows}:
        plan = configuration.requests[index]
        if plan.log_probs != "generated" or case.observation.filed[index]:
            continue
        word, _ = stop_words(configuration, plan)
        sampled = not plan.greedy or configuration.updates or not case.told
        if plan.num_tokens == 0 or (len(word) == 1 and (sampled or _begins_with(case, plan, word))):
            return True
    return False


def _begins_with(case: Case, plan: Plan, word: list[int]) -> bool:
    """Whether what the model alone generates begins with a stop word."""
    once, _ = stop_words(case.configuration, replace(plan, stop=(0, len(word))))
    return once == word


def _stale_prefix(case: Case, complaint: Complaint) -> bool:
    """It found keys and values of other weights, or a later request wrote over its own."""
    index = complaint.request
    if index is None or complaint.kind not in VALUES or not case.configuration.updates:
        return False
    if case.configuration.prefix is None:
        return False
    forwards, size = case.observation.forwards, case.configuration.block_size
    mixed = slots.older(forwards, size) | slots.rewritten(forwards, size)
    parts = [int(complaint.facts["part"])] if "part" in complaint.facts else None
    return any((index, part) in mixed for part in parts or range(len(case.parts(index))))


def _unequal_parts(case: Case, complaint: Complaint) -> bool:
    if complaint.kind != "merge" or complaint.facts["type"] != "TypeError":
        return False
    parts = case.parts(complaint.request or 0)
    return any(
        parts[0][name] is not None and any(part[name] is None for part in parts)
        for name in (*LOG_PROBS, *TOP_N, "tpot")
    )


def _stop_word_of_two_parts(case: Case, complaint: Complaint) -> bool:
    if complaint.kind != "goes on" or "stop" not in complaint.facts:
        return False
    # A request that comes back has lost its stop words.
    return int(complaint.facts["at"]) > len(
        case.parts(complaint.request or 0)[0]["generated_tokens"]
    )


def _accepted_termination_id(case: Case, complaint: Complaint) -> bool:
    """The termination id came with a step that added tokens behind it: accepted drafts."""
    if complaint.kind != "goes on" or "place" not in complaint.facts:
        return False
    index, place = complaint.request, int(complaint.facts["place"])
    if index is None or not case.configuration.speculative:
        return False
    for filed in case.observation.filed[index]:
        if place < len(filed.tokens):
            return place < len(filed.tokens) - 1
        place -= len(filed.tokens)
    return False


def _nothing_generated(case: Case, complaint: Complaint) -> bool:
    plan = _plan(case, complaint)
    if plan is None or plan.num_tokens or plan.log_probs != "generated":
        return False
    return _is_list(complaint, *LOG_PROBS, *TOP_N) and int(complaint.facts["off"]) == 1


def _accepted_twice(case: Case, complaint: Complaint) -> bool:
    """The request ended with a step that accepted at least as many tokens as are missing."""
    index = complaint.request
    if complaint.kind != "ends early" or index is None or not case.configuration.speculative:
        return False
    accepted = [len(filed.tokens) - 1 for filed in case.observation.filed[index]][-1:]
    return bool(accepted) and 0 < int(complaint.facts["missing"]) <= accepted[0]


def _nothing_to_sample(case: Case, complaint: Complaint) -> bool:
    """The step is the first one after such a suspension, and the engine had worked before it."""
    configuration = case.configuration
    return (
        complaint.kind == "exception"
        and complaint.facts["place"].endswith(":sample_kernel")
        and "non-empty list" in complaint.facts["text"]
        and configuration.scheduling == "async"
        and configuration.suspension == "recompute"
        and bool(case.observation.forwards)
        and any(
            item.what == "suspend" and complaint.facts["during"] == f"step {item.step + item.steps}"
            for item in configuration.happenings
        )
    )


def _graphs_without_context(case: Case, complaint: Complaint) -> bool:
    """A trainer called it then."""
    return (
        complaint.kind == "exception"
        and complaint.facts["type"] == "AttributeError"
        and "'ArgMetadata' object has no attribute 'value'" in complaint.facts["text"]
        and case.configuration.scope is not None
        and any(
            item.what in ("train", "evaluate")
            and complaint.facts["during"] == f"what happens before step {item.step}"
            for item in case.configuration.happenings
        )
    )


def _recorded_without_gradients(case: Case, complaint: Complaint) -> bool:
    """The lesson that failed has no gradients, and there was such a one before the first step.

    In evaluation mode nothing is recorded, but once there are graphs they are replayed.
    """
    during = str(complaint.facts.get("during", "")).split()
    if complaint.kind != "exception" or during[:1] != ["lesson"] or not case.configuration.captured:
        return False
    if "received a different number of tensors than what it was" not in complaint.facts["text"]:
        return False
    lessons = case.configuration.lessons[: int(during[1]) + 1]
    if "train" not in lessons or lessons[-1] == "train":
        return False
    first = lessons.index("train")
    # The first one after it fails.
    return "look" in lessons[:first] and set(lessons[first:-1]) == {"train"}


def _recorded_without_buffers(case: Case, complaint: Complaint) -> bool:
    """The engine's model, with a graph a layer, was trained before a lesson that is captured."""
    configuration = case.configuration
    return (
        complaint.kind == "exception"
        and str(complaint.facts["place"]).endswith(":create_bwd_graph")
        and "has no attribute 'main_grad'" in complaint.facts["text"]
        and str(complaint.facts["during"]).startswith("lesson ")
        and configuration.captured
        and configuration.scope == "layer"
        and any(item.what == "train" for item in configuration.happenings)
    )


def _captured_again(case: Case, complaint: Complaint) -> bool:
    """Graphs were being captured as an engine was resumed, in a context that still has requests."""
    return (
        complaint.kind == "exception"
        and complaint.facts["type"] == "RequestOverflowError"
        and ":add_dummy_requests" in complaint.facts["place"]
        and case.configuration.graphs is not None
        and case.record["end"]["requests"] > 0
        and any(
            item.what == "suspend"
            and complaint.facts["during"] == f"what happens before step {item.step + item.steps}"
            for item in case.configuration.happenings
        )
    )


def forgotten_prompts(case: Case) -> dict[tuple[int, int], int]:
    """(request, part) -> number of the first forward pass without the blocks of its earlier chunks.

    Empty unless graphs may have been captured between them, as an engine was resumed.
    """
    configuration = case.configuration
    suspended = any(item.what == "suspend" for item in configuration.happenings)
    if configuration.graphs is None or configuration.suspension != "offload" or not suspended:
        return {}
    return slots.forgotten(case.observation.forwards, configuration.block_size)


def _captured_between_chunks(case: Case, complaint: Complaint) -> bool:
    """A value comes from such a pass, or attention has refused the table of it."""
    forgotten = forgotten_prompts(case)
    if complaint.kind == "exception":
        last = len(case.observation.forwards) - 1
        return "block_table" in complaint.facts["text"] and last in forgotten.values()
    if complaint.request is None or complaint.kind not in VALUES:
        return False
    origin = case.origin(complaint.request, int(complaint.facts["place"]))
    if origin is None:
        return False
    first = forgotten.get((complaint.request, origin[0]))
    return first is not None and first <= origin[1]


def _drafting_layer_recomputed(case: Case, complaint: Complaint) -> bool:
    """A training step of a model that drafts, with recomputed activations."""
    configuration = case.configuration
    return (
        complaint.kind == "exception"
        and "_checkpointed_forward() got an unexpected" in complaint.facts["text"]
        and configuration.recompute
        and configuration.speculative > 0
    )


def _drafts_of_latents(case: Case, complaint: Complaint) -> bool:
    """A layer that drafts is called without the context that latents are cached in."""
    configuration = case.configuration
    return (
        complaint.kind == "exception"
        and complaint.facts["type"] == "AssertionError"
        and "Caching MLA latents only works with dynamic" in complaint.facts["text"]
        and configuration.latents
        and configuration.speculative > 0
    )


def _refused_again(case: Case, complaint: Complaint) -> bool:
    """The engine was suspended with a refused request, and resumed before the next step."""
    return (
        complaint.kind == "exception"
        and complaint.facts["type"] == "InvalidStateError"
        and any(
            item.what == "suspend"
            and complaint.facts["during"] == f"what happens before step {item.step + item.steps}"
            for item in case.configuration.happenings
        )
        and any(refusal(case, plan) is not None for plan in case.configuration.requests)
    )


def _empty_stop_word(case: Case, complaint: Complaint) -> bool:
    """The request ended with a step that accepted a speculative token, or could have."""
    plan = _plan(case, complaint)
    if plan is None or plan.odd_stop != "empty" or not case.configuration.speculative:
        return False
    return complaint.kind == "ends early" or _is_list(complaint, LOG_PROBS[0], TOP_N[0])


def _is_taken(plan: Plan) -> bool:
    """Whether the released sampler takes the sampling parameters, whatever it makes of them."""
    temperature, top_k, top_p = plan.sampling
    if not top_p <= 1 or (top_k > 0 and top_p > 0) or top_k >= VOCABULARY:
        return False
    # A logit that is divided by less is infinite.
    return top_k == 1 or temperature < 0 or temperature >= 1e-30


def _cannot_be_sampled(case: Case, complaint: Complaint) -> bool:
    """A request is served whose sampling parameters mean nothing, or the sampler refuses one's."""
    plan = _plan(case, complaint)
    if complaint.kind == "not refused":
        return plan is not None and not plan.meant
    if not _raised_by_sampling(complaint):
        return False
    rows = [row for forward in case.observation.forwards[-2:] for row in forward.rows]
    return not all(_is_taken(case.configuration.requests[index]) for index, *_ in rows)


def _raised_by_sampling(complaint: Complaint) -> bool:
    place = str(complaint.facts.get("place", ""))
    return complaint.kind == "exception" and place.endswith(
        (":sample_from_logits", ":_torch_sampling_func", ":filter_logits")
    )


def _meaningless_for_all(case: Case, complaint: Complaint) -> bool:
    return _raised_by_sampling(complaint) and not case.configuration.requests[0].meant


def _never_ends(complaint: Complaint) -> bool:
    """The engine goes on without an end, or ends because no request can go on."""
    if complaint.kind != "exception":
        return False
    text = str(complaint.facts["text"])
    return complaint.facts["type"] == "TimeoutError" or (
        complaint.facts["type"] == "AssertionError" and "active_request_count" in text
    )


def _more_blocks_than_there_are(case: Case, complaint: Complaint) -> bool:
    """One of the requests has to be refused for its blocks, and was not; or one is, for nothing."""
    plan = _plan(case, complaint)
    if complaint.kind == "status" and plan is not None:
        # The last token is counted, which is never stored.
        fits = case.observation.limits["blocks of a prompt"] * case.configuration.block_size
        return "BlockOverflowError" in complaint.text and plan.length + plan.num_tokens > fits
    if complaint.kind == "not refused":
        return "it needs" in str(complaint.facts["why"]) or (
            RELEASE < Version("0.15") and "for a step" in str(complaint.facts["why"])
        )
    if not _never_ends(complaint):
        return False
    return any(
        "it needs" in (why := refusal(case, plan) or "")
        or (RELEASE < Version("0.15") and "for a step" in why)
        for plan in case.configuration.requests
    )


def _outgrown_a_step(case: Case, complaint: Complaint) -> bool:
    """A request came back with more tokens than a step can have, and chunks are off."""
    if case.configuration.chunked or not (_never_ends(complaint) or complaint.kind == "status"):
        return False
    most = case.observation.limits["tokens of a step"]
    indices = range(len(case.configuration.requests))
    return any(
        len(part["prompt_tokens"]) > most
        for index in (indices if complaint.request is None else [complaint.request])
        for part in case.parts(index)[1:]
    )


def _hybrid_outgrown_a_step(case: Case, complaint: Complaint) -> bool:
    """The same of a model whose Mamba layers are not prepared for chunks."""
    return case.configuration.hybrid is not None and _outgrown_a_step(case, complaint)


def _empty_prompt(case: Case, complaint: Complaint) -> bool:
    """There is an empty prompt, and it was given to the step or the call that raised."""
    if complaint.kind == "not refused":
        return str(complaint.facts["why"]) == "there is no prompt"
    if complaint.kind != "exception" or all(plan.length for plan in case.configuration.requests):
        return False
    if RELEASE < Version("0.15"):
        return str(complaint.facts["place"]).endswith("DynamicInferenceContext.add_request") or (
            complaint.facts["type"] == "IndexError" and ":add_request" in complaint.facts["place"]
        )
    return str(complaint.facts["text"]) == "Chunk length is 0"


def _raised_at_its_turn(case: Case, complaint: Complaint) -> bool:
    """There is a request that is too long, and its blocks are gone, or the engine with it."""
    longest, plan = case.configuration.longest, _plan(case, complaint)
    if complaint.kind == "not refused":
        return plan is not None and plan.is_too_long(longest)
    if not any(plan.is_too_long(longest) for plan in case.configuration.requests):
        return False
    if complaint.kind == "exception":
        return complaint.facts["type"] == "MaxSequenceLengthOverflowError" or _never_ends(complaint)
    return complaint.kind == "blocks"


def _padded_single_tokens(case: Case, complaint: Complaint) -> bool:
    """Every prompt of a step, or what is left of it, is a single token, and the step is padded."""
    if (
        complaint.kind != "exception"
        or not str(complaint.facts["place"]).endswith(":flash_decode_and_prefill")
        or "q must have shape" not in complaint.facts["text"]
    ):
        return False
    rows = case.observation.forwards[-1].rows
    decodes = [_decodes(case, len(case.observation.forwards) - 1, index) for index, *_ in rows]
    return not all(decodes) and all(count == 1 for *_, count in rows)


def _wishes_of_another(case: Case, complaint: Complaint) -> bool:
    """What is missing was lost in steps that asked other requests whether to keep log probs."""
    index, plan = complaint.request, _plan(case, complaint)
    if index is None or plan is None or not _is_list(complaint, LOG_PROBS[0], TOP_N[0]):
        return False
    name, missing = str(complaint.facts["list"]), -int(complaint.facts["off"])
    word, _ = stop_words(case.configuration, plan)
    lost = 0
    for filed in case.observation.filed[index]:
        less = filed.grown["generated_tokens"] - filed.grown[name]
        if less > 0 and not _not_wanted(case, index, name, filed):
            return False
        if less < 0 and -less > len(word):  # a stop word is taken from the answer
            return False
        lost += max(less, 0)
        missing -= less
    return lost > 0 and missing == 0


def _not_wanted(case: Case, index: int, name: str, filed: Filed) -> bool:
    """Whether a step took another request's choice of log probs for that of this one.

    After a step that launches the next forward pass before it knows which requests go on, the rows
    of those that have ended are filled with others, whose choices stay in their old rows.
    """
    configuration, forwards = case.configuration, case.observation.forwards
    if filed.consumed < 0 or not forwards[filed.consumed].ahead:
        return False
    anew = filed.launched is not None and forwards[filed.launched].ahead
    if anew and not configuration.speculative:
        return False  # such a step makes the rows anew first
    forward = forwards[filed.consumed]
    asked = [configuration.requests[row] for row, *_ in forward.rows[: len(forward.stayed)]]
    if name == LOG_PROBS[0]:
        return not any(plan.log_probs for plan in asked)
    if not any(plan.log_probs for plan in asked):
        return True
    row = forward.stayed.index(index) if index in forward.stayed else None
    return row is not None and row < len(asked) and not asked[row].top_n


def _accepted_in_the_row(case: Case, index: int, filed: Filed) -> bool:
    """Whether a step began the tokens of a prompt with those accepted last in the same row."""
    forwards = case.observation.forwards
    if filed.consumed < 0 or not filed.tokens:
        return False
    forward = forwards[filed.consumed]
    if index not in forward.stayed or not _decodes(case, filed.consumed, forward.stayed[0]):
        return False  # without any draft nothing is accepted
    row = forward.stayed.index(index)
    if _decodes(case, filed.consumed, index):
        return False
    for number in range(filed.consumed - 1, -1, -1):
        stayed = forwards[number].stayed
        if row < len(stayed) and _decodes(case, number, stayed[row]):
            break
    else:
        return False
    items = case.observation.filed[stayed[row]]
    position, before = next(
        (entry for entry in enumerate(items) if entry[1].consumed == number), (0, None)
    )
    if before is None:
        return False
    # What a request has more than it wants is cut off, the token that was sampled first.
    whole = position + 1 < len(items)
    accepted = before.tokens[:-1] if whole else before.tokens
    return bool(accepted) and all(
        one == other for one, other in zip(accepted, filed.tokens, strict=False)
    )


def _decodes(case: Case, number: int, index: int) -> bool:
    """Whether a forward pass has drafts of a request."""
    for of, part, offset, _ in case.observation.forwards[number].rows:
        if of == index:
            return offset >= len(case.parts(of)[part]["prompt_tokens"])
    return False


def _drafts_of_the_row(case: Case, complaint: Complaint) -> bool:
    """The tokens of a prompt's step begin with another request's drafts, and it shows there.

    Those have no log probs, and what comes after them in the same part has the wrong position.
    """
    index, configuration = complaint.request, case.configuration
    if index is None or configuration.scheduling != "async" or not configuration.speculative:
        return False
    all_filed = case.observation.filed[index]
    strange = [filed for filed in all_filed if _accepted_in_the_row(case, index, filed)]
    if complaint.kind in VALUES:
        origin = case.origin(index, int(complaint.facts["place"]))
        if origin is None:
            return False
        part, consumed = origin
        return any(filed.part == part and filed.consumed <= consumed for filed in strange)
    if not _is_list(complaint, LOG_PROBS[0], TOP_N[0]):
        return False
    name, missing = str(complaint.facts["list"]), -int(complaint.facts["off"])
    for filed in all_filed:
        less = filed.grown["generated_tokens"] - filed.grown[name]
        if less and filed not in strange and not _not_wanted(case, index, name, filed):
            return False
        missing -= less
    return bool(strange) and missing == 0


def spoilt_by_drafts(case: Case) -> dict[tuple[int, int], int]:
    """(request, part) -> number of the first forward pass in which it reads misplaced drafts.

    That is: what drafts wrote to the block of another request, or did not write to their own. Empty
    if anything else goes astray.
    """
    if not only_drafts_go_astray(case):
        return {}
    return slots.spoilt(case.observation.forwards, case.configuration.block_size)


def only_drafts_go_astray(case: Case) -> bool:
    """Whether drafts that begin in one block and end in the next go astray, and nothing else."""
    forwards, size = case.observation.forwards, case.configuration.block_size
    for number, forward in enumerate(forwards):
        for row, position, _ in forward.astray:
            _, _, offset, count = forward.rows[row]
            if count != case.configuration.speculative + 1 or position // size != offset // size:
                return False
            if position // size == (offset + count - 1) // size:
                return False
        if not slots.went_to_another(forwards, number):
            return False
    return any(forward.astray for forward in forwards)


def _drafts_in_the_block_of_another(case: Case, complaint: Complaint) -> bool:
    """The token comes from keys or values that a draft has overwritten, or failed to write."""
    if complaint.kind == "astray":
        return only_drafts_go_astray(case)
    index = complaint.request
    if index is None or complaint.kind not in VALUES:
        return False
    origin = case.origin(index, int(complaint.facts["place"]))
    if origin is None:
        return False
    part, consumed = origin
    first = spoilt_by_drafts(case).get((index, part))
    return first is not None and first <= consumed


def explain(case: Case, difference: Difference) -> bool:
    """Whether a token, or its log prob, differs because of a known defect in the run ``case``."""
    place = re.match(
        r"requests\[(\d+)\]\.merged\.generated_(tokens|log_probs|top_n_logprobs)\[(\d+)\]",
        difference.path,
    )
    if place is None:
        return False
    kind = "token" if place[2] == "tokens" else "log prob"
    complaint = Complaint(kind, int(place[1]), difference.path, {"place": int(place[3])})
    return _drafts_in_the_block_of_another(case, complaint)


DEFECTS: tuple[Defect, ...] = (
    Defect(
        "log probs of a cached prompt",
        ">=0.17",
        "what is cached is not given to the model again, so its log probs cannot be computed, and "
        "those of generated tokens are filed in their places",
        _cached_prompt,
        ("cached-prompt-logprobs",),
    ),
    Defect(
        "log probs of a prompt that begins again",
        ">=0.17",
        "the log probs of a prompt's chunks stay when a suspension lets the prompt begin again, "
        "and are then added once more",
        _prompt_that_begins_again,
        ("recomputed-prompt-logprobs",),
    ),
    Defect(
        "log probs of a prompt that is cut",
        ">=0.15",
        "the last token of a chunk gets the log prob of another token than the one that follows",
        _cut_prompt,
        ("prompt-chunk-logprobs",),
    ),
    Defect(
        "the first generated token's log prob in the list of the prompt",
        "<0.16",
        "all log probs of the step that prefills a prompt are taken for those of the prompt, the "
        "last one, too, which is that of the token that it has generated",
        _first_of_the_prompt,
        ("first-token-logprobs",),
    ),
    Defect(
        "top-n log probs of a chunk",
        ">=0.16",
        "a request that wants none of its prompt gets top-n log probs of the last token of each "
        "chunk, in front of those of generated tokens",
        _top_n_of_a_chunk,
        ("chunked-prefill-logprobs", "prompt-chunk-logprobs"),
    ),
    Defect(
        "log probs of a stop word",
        ">=0.16",
        "the tokens of a stop word are taken from the answer, their log probs of earlier steps are "
        "not",
        _trimmed_stop_word,
        ("stopped-request-logprobs", "stop-word-logprobs"),
    ),
    Defect(
        "log probs of no token",
        ">=0.16",
        "when nothing is generated, or the first token is a stop word, the list of the step's log "
        "probs is empty, and its last item is looked for: the engine ends",
        _stopped_at_once,
        ("zero-token-logprobs", "stop-word-logprobs"),
    ),
    Defect(
        "a prefix from before an update",
        ">=0.17",
        "blocks that are cached stay so when the weights change, and the KV of the old weights is "
        "handed to a new request, or written anew while the one that it is of goes on",
        _stale_prefix,
    ),
    Defect(
        "parts with and without log probs",
        ">=0.16",
        "merge() takes for granted that all parts of a request have lists where the first has",
        _unequal_parts,
        ("merged-logprobs",),
    ),
    Defect(
        "stop words of a request that comes back",
        ">=0.16",
        "a request that was evicted or recomputed has no stop words any more, and what it has "
        "generated is not looked at",
        _stop_word_of_two_parts,
        ("resumed-stop-words",),
    ),
    Defect(
        "a termination id among accepted speculative tokens",
        ">=0.17",
        "the token that a step samples last is compared with the termination id, and not the "
        "speculative tokens that it accepts before that one: the request goes on",
        _accepted_termination_id,
        ("accepted-termination-ids",),
    ),
    Defect(
        "the log prob of nothing",
        ">=0.19",
        "a request that generates nothing and wants no log probs of its prompt gets one all the "
        "same, of the token that was not generated",
        _nothing_generated,
        ("stop-word-logprobs",),
    ),
    Defect(
        "accepted speculative tokens counted twice",
        ">=0.17,<0.18",
        "the length of a request, which has the speculative tokens that the step accepted in it, "
        "is taken for that without them: a request ends up to as many tokens early",
        _accepted_twice,
        ("accepted-tokens-once",),
    ),
    Defect(
        "nothing to sample after a suspension",
        ">=0.19",
        "with asynchronous scheduling, a step after a suspension that recomputes goes on with the "
        "requests of the step before, of which there are none",
        _nothing_to_sample,
    ),
    Defect(
        "single tokens in a padded step",
        ">=0.18",
        "the attention of prompts takes a step with prompts of one token, padded to the size of a "
        "graph or to 64 tokens, for one of decoding, and refuses the number of its rows",
        _padded_single_tokens,
        ("grouped-one-token-prompts",),
    ),
    Defect(
        "log probs by the wishes of another request",
        ">=0.19",
        "with asynchronous scheduling, a step after one in which a request ended moves the logits "
        "of others into its row and not what they want of log probs: a request whose row was one "
        "that wants none, or no top-n, gets none of that step",
        _wishes_of_another,
    ),
    Defect(
        "speculative tokens of the request that had the row before",
        ">=0.19",
        "with asynchronous scheduling nothing clears the speculative tokens that were accepted in "
        "a row: a prompt that is computed in that row, beside requests that generate, gets them in "
        "front of its first token",
        _drafts_of_the_row,
    ),
    Defect(
        "speculative tokens in the block of another request",
        ">=0.17",
        "update_requests() notes the last block of each row and then moves requests to other rows, "
        "as when it evicts one: where the speculative tokens of such a request begin in its last "
        "block and end in a new one, the first of them go to the block of the request "
        "that had the row before",
        _drafts_in_the_block_of_another,
        ("moved-draft-blocks",),
    ),
    Defect(
        "sampling parameters of all requests that mean nothing",
        "<0.16",
        "a step has sampling parameters for all requests, and no request is to blame for them",
        _meaningless_for_all,
    ),
    Defect(
        "sampling parameters that no sampler takes",
        ">=0.14",
        "the sampler takes top-k or top-p but not both, and no temperature of 0, and meaningless "
        "parameters are not refused: an assertion, or multinomial(), ends the engine in the step",
        _cannot_be_sampled,
        ("sampling-parameters",),
    ),
    Defect(
        "more blocks than there are",
        ">=0.14",
        "a request that needs more blocks than it can get is taken: the engine ends, or never "
        "does; or one that just fits is refused",
        _more_blocks_than_there_are,
        ("request-block-limit",),
    ),
    Defect(
        "a request that has outgrown a step",
        ">=0.16",
        "what was evicted or recomputed has its output in its prompt, and is not admitted again if "
        "that is too long for a step",
        _outgrown_a_step,
        ("evicted-long-requests",),
    ),
    Defect(
        "a request of a hybrid model that has outgrown a step",
        ">=0.16",
        "it could only come back in chunks, for which Mamba layers are prepared with chunked "
        "prefill alone",
        _hybrid_outgrown_a_step,
    ),
    Defect(
        "an empty prompt",
        ">=0.14",
        "a request without any token is taken, and the step that it is admitted to raises",
        _empty_prompt,
    ),
    Defect(
        "a refused request in a suspension",
        ">=0.16",
        "a refused request is kept until the next step; a suspension that comes first adds it "
        "again when it ends, where it is refused again and its future is done already",
        _refused_again,
        ("suspended-refused-requests",),
    ),
    Defect(
        "an empty stop word where tokens are drafted",
        ">=0.17",
        "of the places that a stop word may end at, all but the last compare no tokens with none: "
        "a request with an empty one ends with its first step",
        _empty_stop_word,
    ),
    Defect(
        "recomputed activations of layers that draft",
        ">=0.18,<0.19",
        "a layer of multi-token prediction passes a padding mask to the function that recomputes "
        "it, which takes none: a training step raises",
        _drafting_layer_recomputed,
    ),
    Defect(
        "drafts of a model whose latents are cached",
        ">=0.17",
        "layers of multi-token prediction get no context when they draft, and those with "
        "multi-latent attention whose latents are to be cached refuse to run without one",
        _drafts_of_latents,
    ),
    Defect(
        "a sequence that is too long, at its turn",
        "<0.15",
        "the length is looked at when the request is admitted, after its blocks were taken: they "
        "are gone, and if it had to wait, the step raises",
        _raised_at_its_turn,
    ),
    Defect(
        "a model with CUDA graphs alone",
        "<0.16",
        "the model of an engine with CUDA graphs, called without its context, raises where "
        "its arguments are compared with those of the graphs",
        _graphs_without_context,
    ),
    Defect(
        "graphs of a layer first called without gradients",
        ">=0.18",
        "a layer in training that was recorded without gradients is captured when the first "
        "training step ends, with them switched on: parameters then count among the inputs of its "
        "graph, and no call without gradients, for which it is chosen, passes them",
        _recorded_without_gradients,
    ),
    Defect(
        "graphs of a model without gradient buffers",
        ">=0.19",
        "a captured backward pass adds to `main_grad`, which parameters get from Megatron's data "
        "parallelism alone: layers that were trained without it raise as the graphs are made",
        _recorded_without_buffers,
    ),
    Defect(
        "graphs captured again",
        ">=0.17",
        "an engine that is resumed captures its graphs again with dummy requests, for which there "
        "is no room beside the requests that it has kept",
        _captured_again,
        ("resumed-graph-capture",),
    ),
    Defect(
        "graphs captured between two chunks of a prompt",
        ">=0.17",
        "an engine that is resumed captures its graphs again and then resets its context, which "
        "has kept the first chunks of a prompt: their blocks are no longer in its table",
        _captured_between_chunks,
        ("resumed-graph-capture",),
    ),
)
