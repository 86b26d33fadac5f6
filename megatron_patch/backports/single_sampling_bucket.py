"""Sample the rows of a single bucket without an index (a change of ours; upstream has none).

Each step puts the active requests into buckets of the same temperature, top-k and top-p, and
samples each bucket. The rows of a bucket are gathered by a list of their numbers, which is built on
the host and copied to the GPU, where the host waits for the copy. The samples of all buckets are
then concatenated, and so are the lists, to put each sample in its place. Mostly there is only one
bucket: its rows are all of them, in order, and all that takes most of the host time of sampling.

With this patch the only bucket is sampled from the logits as they are: the same function gets rows
of the same shape and values and draws the same random numbers, and the samples are already in
order. Rows of padding behind the last request are left out, as they were by the list.

What the gathering also did is to copy the logits. Megatron's sampling function makes a copy before
it changes any; the patch applies only where that is known, and takes the logits as they are only
for that very function. One that somebody has put in its place, in a subclass, on an instance or on
the class, gets rows of its own, as ever.

Not covered: several buckets; the verification of speculative tokens, which has an index of its own.
Their drafts are, in 0.18 and later.
"""

from __future__ import annotations

from ..model import Add, Edit, Family, Kind, Patch, Substitute

CONTROLLER = (
    "megatron.core.inference.text_generation_controllers.text_generation_controller:"
    "TextGenerationController"
)
SAMPLE_LOGITS = f"{CONTROLLER}._dynamic_step_sample_logits"
SAMPLING = "megatron.core.inference.sampling.torch_sampling:TorchSampling"
SAMPLE_KERNEL = f"{SAMPLING}.sample_kernel"

COPY = "last_token_logits = last_token_logits.clone()"
COPY_OF_FILTER = "TorchSampling.filter_logits"
# The rows of a bucket are numbered from the first active request, in order.
NUMBERED = "enumerate(zip(temp, top_k, top_p))"

# Releases before 0.18. 0.16 has a generator of buckets, which is read once.
LISTS = """\
token_list = []
indices_list = []
"""
WITHOUT_LISTS = """\
# Those of a single bucket are all of them, in order, and need no index.
buckets = list(self._torch_sampling_buckets)
if len(buckets) == 1 and TextGenerationController._leaves_logits_alone(self):
    ((indices, temp, top_k, top_p),) = buckets
    request_count = len(indices)
    self._sampled_tokens_cuda[:request_count] = self._torch_sampling_func(
        {logits}[:request_count], temp, top_k, top_p
    )
    return

token_list = []
indices_list = []
"""

BUCKETS = """\
buckets: List[Tuple] = [(indices, *params) for params, indices in bucket_map.items()]
"""
INDICES = """\
bucket_index_tensors: List[Tensor] = [
    torch.tensor(indices, device=device, dtype=torch.long) for indices, *_ in buckets
]
"""
GATHER = """\
if gather_indices is not None:
    logits = logits[gather_indices[:n], :]
"""
WITHOUT_INDICES = """\
# The rows of a single bucket are all of them, in order, and need no index.
if (
    len(buckets) == 1
    and token_to_request_index is None
    and n == active_request_count
    and TorchSampling._leaves_logits_alone()
):
    _, temp, top_k, top_p = buckets[0]
    {result}TorchSampling.sample_from_logits(
        logits[:n], temp, top_k, top_p, generator=self._rng, vocab_size=self._vocab_size
    )
"""
RETURN = WITHOUT_INDICES.format(result="return ")
RETURN_OUTPUT = WITHOUT_INDICES.format(result="sampled_tokens = ")
RETURN_OUTPUT += """\
    if output is None:
        return sampled_tokens
    output[:n] = sampled_tokens
    return output
"""


#: Of the classes, below the functions that are named in it.
OF_CONTROLLER = """\
@staticmethod
def _leaves_logits_alone(controller, sampling=_torch_sampling_func):
    \"""Whether it samples with this very function, which copies logits before it changes any.\"""
    own = "_torch_sampling_func" in getattr(controller, "__dict__", ())
    return not own and getattr(type(controller), "_torch_sampling_func", None) is sampling
"""
OF_SAMPLING = """\
@staticmethod
def _leaves_logits_alone(sampling=sample_from_logits.__func__):
    \"""Whether logits are sampled by this very function, which copies before it changes any.\"""
    return TorchSampling.sample_from_logits is sampling
"""
OF_SAMPLING_WITH_FILTER = """\
@staticmethod
def _leaves_logits_alone(
    sampling=sample_from_logits.__func__, filtering=filter_logits.__func__
):
    \"""Whether logits are sampled by these very functions, which copy before they change any.\"""
    same_sampling = TorchSampling.sample_from_logits is sampling
    return same_sampling and TorchSampling.filter_logits is filtering
"""


def _condition(target: str, code: str, digest: str) -> Substitute:
    return Substitute(target, code, code, digest)


def _in_controller(releases: str, logits: str, digest: str, bookkeeping: str) -> Family:
    return Family(
        releases,
        (
            Substitute(SAMPLE_LOGITS, "self._torch_sampling_buckets", "buckets", digest),
            Substitute(SAMPLE_LOGITS, LISTS, WITHOUT_LISTS.format(logits=logits), digest),
            _condition(f"{CONTROLLER}._dynamic_step_sample_bookkeeping", NUMBERED, bookkeeping),
            _condition(f"{CONTROLLER}._torch_sampling_func", COPY, "13da107a83f488df"),
            Add(f"{CONTROLLER}._leaves_logits_alone", OF_CONTROLLER),
        ),
    )


HELPER = f"{SAMPLING}._leaves_logits_alone"
COPY_IN_SAMPLING = (
    _condition(f"{SAMPLING}.sample_from_logits", COPY, "dd8ab192de418efa"),
    Add(HELPER, OF_SAMPLING),
)
COPY_IN_FILTER = (
    _condition(f"{SAMPLING}.sample_from_logits", COPY_OF_FILTER, "315ac9c73b33855c"),
    _condition(f"{SAMPLING}.filter_logits", COPY, "f346a833f3f39901"),
    Add(HELPER, OF_SAMPLING_WITH_FILTER),
)


def _in_kernel(
    releases: str, digest: str, copy: tuple[Edit, ...], without_indices: str = RETURN
) -> Family:
    find = BUCKETS + INDICES + GATHER
    put = "\n".join((BUCKETS, GATHER, without_indices, INDICES))
    return Family(releases, (Substitute(SAMPLE_KERNEL, find, put, digest), *copy))


SINGLE_SAMPLING_BUCKET = Patch(
    id="single-sampling-bucket",
    kind=Kind.PERFORMANCE,
    summary="Sample requests that share their sampling parameters without an index",
    symptom=(
        "each decode step copies a list of row numbers to the GPU and waits for it, and gathers "
        "and scatters by it, although all requests have the same sampling parameters"
    ),
    outcome="the same tokens, sampled from the logits as they are",
    upstream_pr=None,
    upstream_commit=None,
    upstream_date=None,
    fixed_in=None,
    releases=">=0.16,<0.20",
    removal="upstream samples a single bucket without an index, and no supported release is older",
    updated="2026-11-25",
    # In all releases that have buckets: those before 0.16 sample all requests alike.
    target=SAMPLE_LOGITS,
    families=(
        _in_controller(
            "0.16.0 and 0.16.1, and main at 4a4f23a630",
            "last_token_logits",
            "cc1013ad38f80721",
            "0736897466e28260",
        ),
        _in_controller(
            "main at ffbc43fa35 and 43db8c1cf9",
            "last_token_logits",
            "e534cbf50d09fbc1",
            "0736897466e28260",
        ),
        _in_controller(
            "0.17.0 and 0.17.1, and main at 8f539df740",
            "required_token_logits",
            "3ee1d4c9fefa7889",
            "a5e2d3a7b0bb7e54",
        ),
        _in_controller(
            "main at 03f4111bf8", "required_token_logits", "3ee1d4c9fefa7889", "251c84d216895953"
        ),
        _in_controller(
            "main at 0d98cb838f", "required_token_logits", "5c23642ef32f5dcf", "651b918a623da829"
        ),
        _in_kernel(
            "0.18.0 to 0.18.2, and main at 878228fd0f", "c38adfb619880a02", COPY_IN_SAMPLING
        ),
        _in_kernel("main at a2bb5e5438", "c38adfb619880a02", COPY_IN_FILTER),
        _in_kernel("main at 650b783826", "45f8cf6456425a1c", COPY_IN_FILTER),
        _in_kernel(
            "0.19.0 to 0.19.2, and main at 541d5eef09",
            "3889493a29aa6ce3",
            COPY_IN_FILTER,
            RETURN_OUTPUT,
        ),
    ),
    upstreamed=(),
)
