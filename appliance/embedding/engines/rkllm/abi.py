"""The C interface of librkllmrt.so as data: structs, enums and functions of each of its four families.

Importing this loads nothing. Offsets, sizes and signatures were read off the headers of releases 1.1.0 to 1.3.0 as
compilers lay them out; x86-64 and aarch64 agree in every byte, and 32-bit ARM follows from the same fields.

    A  1.1.0-1.1.4          B  1.2.0, 1.2.1b1          C  1.2.1-1.2.3          D  1.3.0

One row of a table below is one field or function, with the families that have it.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, TypeAlias, get_args

Family: TypeAlias = Literal["A", "B", "C", "D"]

FAMILIES: tuple[Family, ...] = get_args(Family)


class CallState(IntEnum):
    """LLMCallState: what a result callback is told. Hidden states come with NORMAL, in family A with their own."""

    NORMAL = 0
    WAITING = 1
    FINISH = 2
    ERROR = 3
    GET_LAST_HIDDEN_LAYER = 4
    """A only."""


class InputType(IntEnum):
    """RKLLMInputType. A prompt is wrapped into the model's chat template by the library; token ids are not."""

    PROMPT = 0
    TOKEN = 1
    EMBED = 2
    MULTIMODAL = 3


class InferMode(IntEnum):
    """RKLLMInferMode."""

    GENERATE = 0
    GET_LAST_HIDDEN_LAYER = 1
    GET_LOGITS = 2
    """From B on."""


class Answer(IntEnum):
    """What a result callback returns; A and B do not look at it."""

    GO_ON = 0
    PAUSE = 1
    """C and D."""
    RELEASE = 2
    """D: the library may free its output buffer."""


Row: TypeAlias = tuple[str, Any, str]
"""Field name, ctypes type or name of another struct, families."""

_FLOATS = ctypes.POINTER(ctypes.c_float)
_INTS = ctypes.POINTER(ctypes.c_int32)

STRUCTS: Mapping[str, Sequence[Row]] = {
    "RKLLMExtendParam": (
        ("base_domain_id", ctypes.c_int32, "ABCD"),
        ("embed_flash", ctypes.c_int8, "BCD"),
        ("enabled_cpus_num", ctypes.c_int8, "BCD"),
        ("enabled_cpus_mask", ctypes.c_uint32, "BCD"),
        ("n_batch", ctypes.c_uint8, "CD"),
        ("use_cross_attn", ctypes.c_int8, "CD"),
        ("reserved", ctypes.c_uint8 * 112, "A"),
        ("reserved", ctypes.c_uint8 * 106, "B"),
        ("reserved", ctypes.c_uint8 * 104, "CD"),
    ),
    "RKLLMParam": (
        ("model_path", ctypes.c_char_p, "ABCD"),
        ("max_context_len", ctypes.c_int32, "ABCD"),
        ("max_new_tokens", ctypes.c_int32, "ABCD"),
        ("top_k", ctypes.c_int32, "ABCD"),
        ("n_keep", ctypes.c_int32, "BCD"),
        ("top_p", ctypes.c_float, "ABCD"),
        ("temperature", ctypes.c_float, "ABCD"),
        ("repeat_penalty", ctypes.c_float, "ABCD"),
        ("frequency_penalty", ctypes.c_float, "ABCD"),
        ("presence_penalty", ctypes.c_float, "ABCD"),
        ("mirostat", ctypes.c_int32, "ABCD"),
        ("mirostat_tau", ctypes.c_float, "ABCD"),
        ("mirostat_eta", ctypes.c_float, "ABCD"),
        ("skip_special_token", ctypes.c_bool, "ABCD"),
        ("ignore_eos_token", ctypes.c_bool, "D"),
        ("is_async", ctypes.c_bool, "ABCD"),
        ("img_start", ctypes.c_char_p, "ABC"),
        ("img_end", ctypes.c_char_p, "ABC"),
        ("img_content", ctypes.c_char_p, "ABC"),
        ("extend_param", "RKLLMExtendParam", "ABCD"),
    ),
    "RKLLMLoraAdapter": (
        ("lora_adapter_path", ctypes.c_char_p, "ABCD"),
        ("lora_adapter_name", ctypes.c_char_p, "ABCD"),
        ("scale", ctypes.c_float, "ABCD"),
    ),
    "RKLLMEmbedInput": (("embed", _FLOATS, "ABCD"), ("n_tokens", ctypes.c_size_t, "ABCD")),
    "RKLLMTokenInput": (("input_ids", _INTS, "ABCD"), ("n_tokens", ctypes.c_size_t, "ABCD")),
    "RKLLMImageInput": (  # a struct without a name in the header
        ("image_embed", _FLOATS, "D"),
        ("n_image_tokens", ctypes.c_size_t, "D"),
        ("n_image", ctypes.c_size_t, "D"),
        ("image_start", ctypes.c_char_p, "D"),
        ("image_end", ctypes.c_char_p, "D"),
        ("image_content", ctypes.c_char_p, "D"),
        ("image_width", ctypes.c_size_t, "D"),
        ("image_height", ctypes.c_size_t, "D"),
    ),
    "RKLLMVideoInput": (  # same
        ("video_embed", _FLOATS, "D"),
        ("n_frame_tokens", ctypes.c_size_t, "D"),
        ("n_frame_per_video", ctypes.c_size_t, "D"),
        ("n_video", ctypes.c_size_t, "D"),
        ("video_start", ctypes.c_char_p, "D"),
        ("video_end", ctypes.c_char_p, "D"),
        ("video_content", ctypes.c_char_p, "D"),
        ("frame_width", ctypes.c_size_t, "D"),
        ("frame_height", ctypes.c_size_t, "D"),
    ),
    "RKLLMMultiModalInput": (
        ("prompt", ctypes.c_char_p, "ABCD"),
        ("image_embed", _FLOATS, "ABC"),
        ("n_image_tokens", ctypes.c_size_t, "ABC"),
        ("n_image", ctypes.c_size_t, "BC"),  # 1.2.0 ends before it: a struct that is too long harms nobody
        ("image_width", ctypes.c_size_t, "BC"),
        ("image_height", ctypes.c_size_t, "BC"),
        ("image", "RKLLMImageInput", "D"),
        ("video", "RKLLMVideoInput", "D"),
    ),
    "RKLLMInputValue": (  # the union inside RKLLMInput
        ("prompt_input", ctypes.c_char_p, "ABCD"),
        ("embed_input", "RKLLMEmbedInput", "ABCD"),
        ("token_input", "RKLLMTokenInput", "ABCD"),
        ("multimodal_input", "RKLLMMultiModalInput", "ABCD"),
    ),
    "RKLLMInput": (
        ("role", ctypes.c_char_p, "CD"),
        ("enable_thinking", ctypes.c_bool, "CD"),
        ("input_type", ctypes.c_int, "ABCD"),
        ("value", "RKLLMInputValue", "ABCD"),
    ),
    "RKLLMLoraParam": (("lora_adapter_name", ctypes.c_char_p, "ABCD"),),
    "RKLLMPromptCacheParam": (
        ("save_prompt_cache", ctypes.c_int, "ABCD"),
        ("prompt_cache_path", ctypes.c_char_p, "ABCD"),
    ),
    "RKLLMSamplingParam": (
        ("top_k", ctypes.c_int32, "D"),
        ("top_p", ctypes.c_float, "D"),
        ("temperature", ctypes.c_float, "D"),
        ("repeat_penalty", ctypes.c_float, "D"),
        ("frequency_penalty", ctypes.c_float, "D"),
        ("presence_penalty", ctypes.c_float, "D"),
        ("mirostat", ctypes.c_int32, "D"),
        ("mirostat_tau", ctypes.c_float, "D"),
        ("mirostat_eta", ctypes.c_float, "D"),
    ),
    "RKLLMInferParam": (
        ("mode", ctypes.c_int, "ABCD"),
        ("lora_params", "*RKLLMLoraParam", "ABCD"),
        ("prompt_cache_params", "*RKLLMPromptCacheParam", "ABCD"),
        ("sampling_params", "*RKLLMSamplingParam", "D"),
        ("keep_history", ctypes.c_int, "BCD"),
        ("max_new_tokens", ctypes.c_int32, "D"),
    ),
    "RKLLMResultLastHiddenLayer": (
        ("hidden_states", _FLOATS, "ABCD"),
        ("embd_size", ctypes.c_int, "ABCD"),
        ("num_tokens", ctypes.c_int, "ABCD"),
    ),
    "RKLLMResultLogits": (
        ("logits", _FLOATS, "BCD"),
        ("vocab_size", ctypes.c_int, "BCD"),
        ("num_tokens", ctypes.c_int, "BCD"),
    ),
    "RKLLMPerfStat": (
        ("prefill_time_ms", ctypes.c_float, "CD"),
        ("prefill_tokens", ctypes.c_int, "CD"),
        ("generate_time_ms", ctypes.c_float, "CD"),
        ("generate_tokens", ctypes.c_int, "CD"),
        ("memory_usage_mb", ctypes.c_float, "CD"),
    ),
    "RKLLMResult": (
        ("text", ctypes.c_char_p, "ABCD"),
        ("token_id", ctypes.c_int32, "ABCD"),
        ("last_hidden_layer", "RKLLMResultLastHiddenLayer", "ABCD"),
        ("logits", "RKLLMResultLogits", "BCD"),
        ("perf", "RKLLMPerfStat", "CD"),
    ),
    "RKLLMCallback": (
        ("result_callback", "LLMResultCallback", "D"),
        ("result_userdata", ctypes.c_void_p, "D"),
        ("tokenizer_callback", "LLMTokenizerCallback", "D"),
        ("tokenizer_userdata", ctypes.c_void_p, "D"),
        ("embed_callback", "LLMGetEmbedCallback", "D"),
        ("embed_userdata", ctypes.c_void_p, "D"),
    ),
    "RKLLMCrossAttnParam": (
        ("encoder_k_cache", _FLOATS, "CD"),
        ("encoder_v_cache", _FLOATS, "CD"),
        ("encoder_mask", _FLOATS, "CD"),
        ("encoder_pos", _INTS, "CD"),
        ("num_tokens", ctypes.c_int, "CD"),
    ),
}

_UNIONS = frozenset({"RKLLMInputValue"})

CALLBACKS: Mapping[str, tuple[Any, ...]] = {
    # A and B expect void: what is returned is left in a register that nobody reads
    "LLMResultCallback": (ctypes.c_int, "*RKLLMResult", ctypes.c_void_p, ctypes.c_int),
    "LLMTokenizerCallback": (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int32,
        _INTS,
        ctypes.c_int32,
    ),
    "LLMGetEmbedCallback": (
        ctypes.c_int,
        ctypes.c_void_p,
        _INTS,
        ctypes.c_uint64,
        ctypes.c_void_p,
        ctypes.c_uint64,
    ),
}
"""Result type first, then the arguments. The last two are family D's, and NULL for a model with all its parts."""

_HANDLE = ctypes.c_void_p
_POSITIONS = ctypes.POINTER(ctypes.c_int)

FUNCTIONS: Sequence[tuple[str, tuple[Any, ...], str]] = (
    ("rkllm_init", (ctypes.POINTER(_HANDLE), "*RKLLMParam", "LLMResultCallback"), "ABC"),
    ("rkllm_init", (ctypes.POINTER(_HANDLE), "*RKLLMParam", "*RKLLMCallback"), "D"),
    ("rkllm_load_lora", (_HANDLE, "*RKLLMLoraAdapter"), "ABCD"),
    ("rkllm_load_prompt_cache", (_HANDLE, ctypes.c_char_p), "ABCD"),
    ("rkllm_release_prompt_cache", (_HANDLE,), "ABCD"),
    ("rkllm_destroy", (_HANDLE,), "ABCD"),
    ("rkllm_run", (_HANDLE, "*RKLLMInput", "*RKLLMInferParam", ctypes.c_void_p), "ABCD"),
    ("rkllm_run_async", (_HANDLE, "*RKLLMInput", "*RKLLMInferParam", ctypes.c_void_p), "ABCD"),
    ("rkllm_abort", (_HANDLE,), "ABCD"),
    ("rkllm_is_running", (_HANDLE,), "ABCD"),
    ("rkllm_clear_kv_cache", (_HANDLE, ctypes.c_int), "B"),
    ("rkllm_clear_kv_cache", (_HANDLE, ctypes.c_int, _POSITIONS, _POSITIONS), "CD"),
    ("rkllm_set_chat_template", (_HANDLE, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p), "BCD"),
    ("rkllm_get_kv_cache_size", (_HANDLE, _POSITIONS), "CD"),
    ("rkllm_set_function_tools", (_HANDLE, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p), "CD"),
    ("rkllm_set_cross_attn_params", (_HANDLE, "*RKLLMCrossAttnParam"), "CD"),
)
"""Arguments of each function; all return an int, 0 for success, but for `is_running`. `rkllm_createDefaultParam` is not
among them: it returns a struct by value, see `AnyParam`. No release has a function that tells its version."""

USED = frozenset(
    ("rkllm_init", "rkllm_run", "rkllm_abort", "rkllm_destroy", "rkllm_clear_kv_cache", "rkllm_set_chat_template")
)
"""What we call, as far as a family has it."""

UNCHECKED = frozenset({"rkllm_is_running"})
"""Its result is no success or failure, and its polarity differs between headers: nothing may depend on it."""


class AnyParam(ctypes.Structure):
    """What `rkllm_createDefaultParam` returns, in a struct larger than any family's.

    Too large a result is safe in every calling convention in question, and tells which family wrote it; one that is too
    small is written beyond its end.
    """

    _fields_ = (("raw", ctypes.c_uint8 * 1024),)


_PLACES: Mapping[int, tuple[int, int, int, int]] = {8: (20, 93, 65, 72), 4: (16, 73, 61, 68)}
"""By bytes of a pointer, where RKLLMParam has n_keep in B to D, enabled_cpus_num in B and C, that and n_batch in D."""


def families_of_default(param: AnyParam, *, pointer: int = ctypes.sizeof(ctypes.c_void_p)) -> str:
    """The families whose default `param` may be, "" for none: a cross-check, not a proof.

    `n_keep` is -1 by default, and family A has none: another field lies there. The number of CPUs is 4 by default, and
    `n_batch` is 1.

    Args:
        param: as the library returned it.
        pointer: bytes of a pointer, 8, or 4 on 32-bit ARM.
    """
    raw = bytes(param.raw)
    keep, cpus, cpus_of_d, batch = _PLACES[pointer]
    if int.from_bytes(raw[keep : keep + 4], "little", signed=True) != -1:
        return "A"
    if raw[cpus] == _CPUS:
        return "BC"
    return "D" if (raw[cpus_of_d], raw[batch]) == (_CPUS, 1) else ""


_CPUS = 4


class Refused(Exception):
    """A function of the library returned something else than 0."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")
        self.function = function
        self.code = code


@dataclass(frozen=True, slots=True)
class Signature:
    """A function of one family. `check` raises Refused for a result that says failure; None where there is none."""

    argtypes: tuple[Any, ...]
    check: Callable[[int, Any, tuple[Any, ...]], int] | None


@dataclass(frozen=True, slots=True)
class Abi:
    """One family: its structs and callback types by the header's names, its functions by theirs."""

    family: Family
    types: Mapping[str, Any]
    functions: Mapping[str, Signature]

    def bind(self, library: Any) -> None:
        """Give every function of a loaded library its types. AttributeError for one of `USED` that it lacks."""
        library.rkllm_createDefaultParam.restype = AnyParam
        library.rkllm_createDefaultParam.argtypes = ()
        for name, signature in self.functions.items():
            if name not in USED and not hasattr(library, name):
                continue
            function = getattr(library, name)
            function.restype = ctypes.c_int
            function.argtypes = signature.argtypes
            if signature.check is not None:
                function.errcheck = signature.check


def fields(family: Family, struct: str) -> Iterator[tuple[str, Any]]:
    """The fields of a struct in one family, in order; none where the family has no such struct."""
    for name, kind, families in STRUCTS[struct]:
        if family in families:
            yield name, kind


def abi(family: Family) -> Abi:
    """The interface of one family."""
    types: dict[str, Any] = {}

    def resolved(kind: Any) -> Any:
        if not isinstance(kind, str):
            return kind
        return ctypes.POINTER(types[kind[1:]]) if kind.startswith("*") else types[kind]

    def callback(name: str) -> Any:
        return ctypes.CFUNCTYPE(*(resolved(each) for each in CALLBACKS[name]))

    for name in STRUCTS:
        if name == "RKLLMCallback":
            types |= {each: callback(each) for each in CALLBACKS}
        rows = [(field, resolved(kind)) for field, kind in fields(family, name)]
        if rows:
            base = ctypes.Union if name in _UNIONS else ctypes.Structure
            types[name] = type(name, (base,), {"_fields_": rows})
    functions = {
        name: Signature(tuple(resolved(each) for each in arguments), None if name in UNCHECKED else _checked(name))
        for name, arguments, families in FUNCTIONS
        if family in families
    }
    return Abi(family, types, functions)


def _checked(name: str) -> Callable[[int, Any, tuple[Any, ...]], int]:
    def check(code: int, _function: Any, _arguments: tuple[Any, ...]) -> int:
        if code != 0:
            raise Refused(name, code)
        return code

    return check
