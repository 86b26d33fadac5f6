"""The series: every backport, in the order in which they are applied.

A patch keeps its place once it has been released: the numbers of exported patches come from it.
"""

from __future__ import annotations

from ..model import Patch
from .ours.accepted_termination_ids import ACCEPTED_TERMINATION_IDS
from .ours.active_slice_views import ACTIVE_SLICE_VIEWS
from .ours.attention_length_views import ATTENTION_LENGTH_VIEWS
from .ours.attention_metadata_update import ATTENTION_METADATA_UPDATE
from .ours.attention_softmax_scale import ATTENTION_SOFTMAX_SCALE
from .ours.bookkeeping_reads import BOOKKEEPING_READS
from .ours.cached_prompt_logprobs import CACHED_PROMPT_LOGPROBS
from .ours.draft_positions import DRAFT_POSITIONS
from .ours.evicted_long_requests import EVICTED_LONG_REQUESTS
from .ours.flash_decode_attention import FLASH_DECODE_ATTENTION
from .ours.generate_refused_requests import GENERATE_REFUSED_REQUESTS
from .ours.graph_argument_check import GRAPH_ARGUMENT_CHECK
from .ours.graph_replay_without_autograd import GRAPH_REPLAY_WITHOUT_AUTOGRAD
from .ours.grouped_one_token_prompts import GROUPED_ONE_TOKEN_PROMPTS
from .ours.http_log_probs import HTTP_LOG_PROBS
from .ours.http_parameters import HTTP_PARAMETERS
from .ours.idle_engine_wake import IDLE_ENGINE_WAKE
from .ours.last_token_logits_view import LAST_TOKEN_LOGITS_VIEW
from .ours.mamba_skipped_tokens import MAMBA_SKIPPED_TOKENS
from .ours.merged_logprobs import MERGED_LOGPROBS
from .ours.moved_draft_blocks import MOVED_DRAFT_BLOCKS
from .ours.nvls_real_token_count import NVLS_REAL_TOKEN_COUNT
from .ours.prompt_chunk_logprobs import PROMPT_CHUNK_LOGPROBS
from .ours.recomputed_prompt_logprobs import RECOMPUTED_PROMPT_LOGPROBS
from .ours.request_metadata_copies import REQUEST_METADATA_COPIES
from .ours.resumed_graph_capture import RESUMED_GRAPH_CAPTURE
from .ours.resumed_stop_words import RESUMED_STOP_WORDS
from .ours.sampling_parameters import SAMPLING_PARAMETERS
from .ours.single_sampling_bucket import SINGLE_SAMPLING_BUCKET
from .ours.single_token_update import SINGLE_TOKEN_UPDATE
from .ours.staged_request_arrays import STAGED_REQUEST_ARRAYS
from .ours.stop_word_logprobs import STOP_WORD_LOGPROBS
from .ours.streamed_segments import STREAMED_SEGMENTS
from .ours.suspended_refused_requests import SUSPENDED_REFUSED_REQUESTS
from .ours.tensor_parallel_without_autograd import TENSOR_PARALLEL_WITHOUT_AUTOGRAD
from .ours.vanished_clients import VANISHED_CLIENTS
from .upstream.accepted_tokens_once import ACCEPTED_TOKENS_ONCE
from .upstream.attention_sinks import ATTENTION_SINKS
from .upstream.block_allocator_reset import BLOCK_ALLOCATOR_RESET
from .upstream.bookkeeping_transfer_sync import BOOKKEEPING_TRANSFER_SYNC
from .upstream.chat_null_parameters import CHAT_NULL_PARAMETERS
from .upstream.chunked_prefill_logprobs import CHUNKED_PREFILL_LOGPROBS
from .upstream.chunked_prompt_blocks import CHUNKED_PROMPT_BLOCKS
from .upstream.dp_sampling_seed import DP_SAMPLING_SEED
from .upstream.edited_conversation import EDITED_CONVERSATION
from .upstream.failed_request_status import FAILED_REQUEST_STATUS
from .upstream.first_token_logprobs import FIRST_TOKEN_LOGPROBS
from .upstream.flashinfer_sampling_numbers import FLASHINFER_SAMPLING_NUMBERS
from .upstream.graph_input_copies import GRAPH_INPUT_COPIES
from .upstream.graph_runner_eval import GRAPH_RUNNER_EVAL
from .upstream.hidden_chunk_overlap import HIDDEN_CHUNK_OVERLAP
from .upstream.idle_step_prefix_cache import IDLE_STEP_PREFIX_CACHE
from .upstream.input_position_view_cache import INPUT_POSITION_VIEW_CACHE
from .upstream.kv_append_offset_dtype import KV_APPEND_OFFSET_DTYPE
from .upstream.kv_block_ref_counts import KV_BLOCK_REF_COUNTS
from .upstream.latent_cache_decode_flag import LATENT_CACHE_DECODE_FLAG
from .upstream.lru_prefix_cache import LRU_PREFIX_CACHE
from .upstream.mamba_cache_room import MAMBA_CACHE_ROOM
from .upstream.mamba_chunk_match import MAMBA_CHUNK_MATCH
from .upstream.mamba_conv_state import MAMBA_CONV_STATE
from .upstream.mamba_metadata_reset import MAMBA_METADATA_RESET
from .upstream.one_choice_per_answer import ONE_CHOICE_PER_ANSWER
from .upstream.one_token_prefill import ONE_TOKEN_PREFILL
from .upstream.padded_block_table import PADDED_BLOCK_TABLE
from .upstream.refused_request_reply import REFUSED_REQUEST_REPLY
from .upstream.removed_engine_replies import REMOVED_ENGINE_REPLIES
from .upstream.removed_engine_routing import REMOVED_ENGINE_ROUTING
from .upstream.request_block_limit import REQUEST_BLOCK_LIMIT
from .upstream.request_metadata_sync import REQUEST_METADATA_SYNC
from .upstream.resumed_prompt_chunks import RESUMED_PROMPT_CHUNKS
from .upstream.resumed_request_metadata import RESUMED_REQUEST_METADATA
from .upstream.resumed_total_tokens import RESUMED_TOTAL_TOKENS
from .upstream.single_bookkeeping_transfer import SINGLE_BOOKKEEPING_TRANSFER
from .upstream.sliding_window_attention import SLIDING_WINDOW_ATTENTION
from .upstream.static_batch_segments import STATIC_BATCH_SEGMENTS
from .upstream.step_log_sync import STEP_LOG_SYNC
from .upstream.stopped_request_logprobs import STOPPED_REQUEST_LOGPROBS
from .upstream.uneven_pipeline import UNEVEN_PIPELINE
from .upstream.unified_memory_threads import UNIFIED_MEMORY_THREADS
from .upstream.yarn_concentration_factor import YARN_CONCENTRATION_FACTOR
from .upstream.zero_token_logprobs import ZERO_TOKEN_LOGPROBS

SERIES: tuple[Patch, ...] = (
    INPUT_POSITION_VIEW_CACHE,
    BOOKKEEPING_TRANSFER_SYNC,
    KV_BLOCK_REF_COUNTS,
    BLOCK_ALLOCATOR_RESET,
    PADDED_BLOCK_TABLE,
    STEP_LOG_SYNC,
    SINGLE_BOOKKEEPING_TRANSFER,
    GRAPH_ARGUMENT_CHECK,
    ONE_TOKEN_PREFILL,
    ZERO_TOKEN_LOGPROBS,
    CHUNKED_PREFILL_LOGPROBS,
    RESUMED_REQUEST_METADATA,
    LRU_PREFIX_CACHE,
    KV_APPEND_OFFSET_DTYPE,
    SINGLE_TOKEN_UPDATE,
    GRAPH_RUNNER_EVAL,
    GRAPH_REPLAY_WITHOUT_AUTOGRAD,
    ATTENTION_METADATA_UPDATE,
    SINGLE_SAMPLING_BUCKET,
    LAST_TOKEN_LOGITS_VIEW,
    ACTIVE_SLICE_VIEWS,
    TENSOR_PARALLEL_WITHOUT_AUTOGRAD,
    ATTENTION_LENGTH_VIEWS,
    DP_SAMPLING_SEED,
    NVLS_REAL_TOKEN_COUNT,
    REQUEST_METADATA_SYNC,
    FIRST_TOKEN_LOGPROBS,
    PROMPT_CHUNK_LOGPROBS,
    RECOMPUTED_PROMPT_LOGPROBS,
    CACHED_PROMPT_LOGPROBS,
    ACCEPTED_TOKENS_ONCE,
    DRAFT_POSITIONS,
    MOVED_DRAFT_BLOCKS,
    ACCEPTED_TERMINATION_IDS,
    STOPPED_REQUEST_LOGPROBS,
    STOP_WORD_LOGPROBS,
    RESUMED_STOP_WORDS,
    MERGED_LOGPROBS,
    REFUSED_REQUEST_REPLY,
    REQUEST_BLOCK_LIMIT,
    GENERATE_REFUSED_REQUESTS,
    IDLE_ENGINE_WAKE,
    EVICTED_LONG_REQUESTS,
    RESUMED_TOTAL_TOKENS,
    RESUMED_PROMPT_CHUNKS,
    CHUNKED_PROMPT_BLOCKS,
    SAMPLING_PARAMETERS,
    CHAT_NULL_PARAMETERS,
    EDITED_CONVERSATION,
    ONE_CHOICE_PER_ANSWER,
    FAILED_REQUEST_STATUS,
    HTTP_LOG_PROBS,
    HTTP_PARAMETERS,
    ATTENTION_SINKS,
    SLIDING_WINDOW_ATTENTION,
    YARN_CONCENTRATION_FACTOR,
    ATTENTION_SOFTMAX_SCALE,
    REMOVED_ENGINE_ROUTING,
    REMOVED_ENGINE_REPLIES,
    VANISHED_CLIENTS,
    LATENT_CACHE_DECODE_FLAG,
    UNEVEN_PIPELINE,
    IDLE_STEP_PREFIX_CACHE,
    HIDDEN_CHUNK_OVERLAP,
    UNIFIED_MEMORY_THREADS,
    SUSPENDED_REFUSED_REQUESTS,
    STATIC_BATCH_SEGMENTS,
    STREAMED_SEGMENTS,
    GROUPED_ONE_TOKEN_PROMPTS,
    FLASH_DECODE_ATTENTION,
    MAMBA_CACHE_ROOM,
    MAMBA_CHUNK_MATCH,
    MAMBA_METADATA_RESET,
    MAMBA_SKIPPED_TOKENS,
    GRAPH_INPUT_COPIES,
    FLASHINFER_SAMPLING_NUMBERS,
    MAMBA_CONV_STATE,
    BOOKKEEPING_READS,
    STAGED_REQUEST_ARRAYS,
    REQUEST_METADATA_COPIES,
    RESUMED_GRAPH_CAPTURE,
)
