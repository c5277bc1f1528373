"""One model in librkllmrt.so, from `rkllm_init` to `rkllm_destroy`: what happens on the library's side of the border.

Runs in a process of its own (see `worker`), for what goes wrong in native code announces itself by no return code.
Imports nothing heavy: the process begins again after every crash.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from appliance.embedding.engines.rkllm.abi import (
    Abi,
    Answer,
    AnyParam,
    CallState,
    Family,
    InferMode,
    InputType,
    Refused,
    abi,
    families_of_default,
)


class SessionFailed(Exception):
    """The model cannot be opened, or a run gave no usable answer. The message is for a person and holds no text."""


class ModelRefused(SessionFailed):
    """The library would not have the model file."""


class Job(NamedTuple):
    """How a model is opened, as a card and the settings say.

    Attributes:
        library: path of librkllmrt.so.
        family: of its interface.
        certain: whether somebody said so: then what the library's defaults look like is not held against it.
        model: path of the `.rkllm` file.
        context: tokens of the context, as the file was converted; no input has more.
        pooling: which hidden states become the vector; "" for a model that is asked for logits.
        dimensions: numbers of a hidden state; 0 for a model that is asked for logits.
        domain: IOMMU domain.
        embed_flash: read the embedding table from storage.
        cpus: numbers of the CPU cores that the library may use.
    """

    library: str
    family: Family
    certain: bool
    model: str
    context: int
    pooling: Literal["last", "mean", "cls", ""]
    dimensions: int
    domain: int
    embed_flash: bool
    cpus: Sequence[int]


class Perf(NamedTuple):
    """What the library measured itself; zeros in families A and B, which tell nothing."""

    milliseconds: float = 0.0
    tokens: int = 0


class Session:
    """An open model. One thread runs; `abort` may be called by another.

    Raises:
        ModelRefused: the library will not have the model.
        SessionFailed: the library cannot be loaded, or is of another family.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._abi: Abi = abi(job.family)
        self._handle = ctypes.c_void_p()
        self._library = _loaded(job, self._abi)
        types = self._abi.types
        self._callback = types["LLMResultCallback"](self._on_result)  # held for as long as the library may call it
        self._input, self._infer = types["RKLLMInput"](), types["RKLLMInferParam"]()
        self._has_role, self._has_limit = "role" in _names(self._input), "max_new_tokens" in _names(self._infer)
        self._measures = "RKLLMPerfStat" in types
        self._released = Answer.RELEASE if job.family == "D" else Answer.GO_ON
        self._wanted: Sequence[int] = ()
        self._into = 0
        self._seen = 0
        self._trouble = ""
        self._perf = Perf()
        self._param = _param(job, types)
        callback: Any = self._callback
        if "RKLLMCallback" in types:
            self._callbacks = types["RKLLMCallback"](result_callback=self._callback)
            callback = ctypes.byref(self._callbacks)
        try:
            self._library.rkllm_init(ctypes.byref(self._handle), ctypes.byref(self._param), callback)
            if "rkllm_set_chat_template" in self._abi.functions:
                # Token ids get no template; should a release think otherwise, it has an empty one to put around them.
                self._library.rkllm_set_chat_template(self._handle, b"", b"", b"")
        except Refused as refused:
            raise ModelRefused(f"the runtime refused the model ({refused})") from refused

    def embed(self, ids: int, count: int, *, into: int) -> Perf:
        """Pool the hidden states of a text into one vector.

        Args:
            ids: address of the token ids, int32 x count.
            count: tokens, 1 to the context.
            into: address of the vector, float32 x dimensions; what it holds is no vector if this raises.

        Raises:
            SessionFailed: no hidden states came, or others than these tokens have.
        """
        self._wanted, self._into = (), into
        self._run(ids, count, InferMode.GET_LAST_HIDDEN_LAYER)
        if self._seen != count:
            raise SessionFailed(
                f"the runtime read {self._seen} tokens where {count} were given: it added some, or kept an older text"
            )
        return self._perf

    def logits(self, ids: int, count: int, *, wanted: Sequence[int], into: int) -> Perf:
        """Write the logits of the tokens `wanted` after a text, float32 x len(wanted), to the address `into`.

        Raises:
            SessionFailed: no logits came, or the model has no such tokens, or family A, which gives none.
        """
        if "RKLLMResultLogits" not in self._abi.types:
            raise SessionFailed("librkllmrt.so 1.1 gives no logits: a reranker needs 1.2 or newer")
        self._wanted, self._into = wanted, into
        self._run(ids, count, InferMode.GET_LOGITS)
        return self._perf

    def abort(self) -> None:
        """End a run from another thread; the run then fails, unless it just ended well."""
        if self._handle.value:
            try:
                self._library.rkllm_abort(self._handle)
            except Refused:  # nothing was running any more
                return

    def close(self) -> None:
        """Let go of the model. Safe to call twice."""
        if self._handle.value:
            handle, self._handle = self._handle, ctypes.c_void_p()
            self._library.rkllm_destroy(handle)

    def _run(self, ids: int, count: int, mode: InferMode) -> None:
        if not 0 < count <= self._job.context:
            raise SessionFailed(f"{count} tokens do not fit into a context of {self._job.context}")
        self._seen, self._trouble, self._perf = 0, "", Perf()
        # What was left of an earlier run would be read as if it stood before this text; `keep_history` alone does not
        # see to it.
        self._clear()
        self._fill(ids, count, mode)
        try:
            self._library.rkllm_run(self._handle, ctypes.byref(self._input), ctypes.byref(self._infer), None)
        except Refused as refused:
            raise SessionFailed(self._trouble or f"the runtime failed ({refused})") from refused
        if self._trouble:
            raise SessionFailed(self._trouble)
        if not self._seen:
            raise SessionFailed("the runtime ended without an answer")

    def _clear(self) -> None:
        signature = self._abi.functions.get("rkllm_clear_kv_cache")
        if signature is None:
            return
        everything: tuple[Any, ...] = (self._handle, 0, None, None)  # no system prompt kept, no range: all of it
        try:
            self._library.rkllm_clear_kv_cache(*everything[: len(signature.argtypes)])
        except Refused as refused:
            raise SessionFailed(f"the runtime does not forget the text before ({refused})") from refused

    def _fill(self, ids: int, count: int, mode: InferMode) -> None:
        for struct in (self._input, self._infer):
            ctypes.memset(ctypes.addressof(struct), 0, ctypes.sizeof(struct))
        if self._has_role:
            self._input.role = b"user"
        self._input.input_type = InputType.TOKEN
        self._input.value.token_input.input_ids = ctypes.cast(ids, ctypes.POINTER(ctypes.c_int32))
        self._input.value.token_input.n_tokens = count
        self._infer.mode = mode
        if self._has_limit:
            self._infer.max_new_tokens = 1

    def _on_result(self, result: Any, _userdata: Any, state: int) -> int:
        try:
            return self._taken(result.contents, state)
        except Exception as error:  # noqa: BLE001 - nothing may be raised into native code
            self._trouble = f"the answer could not be read: {type(error).__name__}"
            return Answer.GO_ON

    def _taken(self, result: Any, state: int) -> Answer:
        """Copy what there is to copy: the library overwrites it when this returns."""
        if state == CallState.ERROR:
            self._trouble = self._trouble or "the runtime ended the run"
        elif state == CallState.FINISH:
            if self._measures:
                self._perf = Perf(result.perf.prefill_time_ms, result.perf.prefill_tokens)
        elif self._wanted:
            return self._take_logits(result.logits)
        elif state in {CallState.NORMAL, CallState.GET_LAST_HIDDEN_LAYER}:
            return self._take_states(result.last_hidden_layer)
        return Answer.GO_ON

    def _take_logits(self, found: Any) -> Answer:
        if not found.logits or found.num_tokens <= 0 or self._seen:
            return Answer.GO_ON
        if max(self._wanted) >= found.vocab_size:
            self._trouble = f"the model has {found.vocab_size} tokens, its card names token {max(self._wanted)}"
            return Answer.GO_ON
        last = (found.num_tokens - 1) * found.vocab_size
        into = (ctypes.c_float * len(self._wanted)).from_address(self._into)
        into[:] = [found.logits[last + token] for token in self._wanted]
        self._seen = found.num_tokens
        return self._released

    def _take_states(self, found: Any) -> Answer:
        if not found.hidden_states or found.num_tokens <= 0:
            return Answer.GO_ON
        if found.embd_size != self._job.dimensions:
            self._trouble = f"the model gives {found.embd_size} dimensions, its card says {self._job.dimensions}"
            return Answer.GO_ON
        self._pool(ctypes.addressof(found.hidden_states.contents), found.num_tokens)
        self._seen = found.num_tokens
        return self._released

    def _pool(self, states: int, rows: int) -> None:
        size = self._job.dimensions * ctypes.sizeof(ctypes.c_float)
        match self._job.pooling:
            case "last":
                ctypes.memmove(self._into, states + (rows - 1) * size, size)
            case "cls":
                ctypes.memmove(self._into, states, size)
            case _:
                import numpy as np  # heavy, and only here

                floats = ctypes.POINTER(ctypes.c_float)
                matrix = np.ctypeslib.as_array(ctypes.cast(states, floats), (rows, self._job.dimensions))
                target = np.ctypeslib.as_array(ctypes.cast(self._into, floats), (self._job.dimensions,))
                matrix.mean(axis=0, out=target)


def _names(struct: Any) -> set[str]:
    return {name for name, _ in struct._fields_}


def _loaded(job: Job, family: Abi) -> Any:
    """The library with its types bound, once its defaults look like the family's."""
    try:
        library = ctypes.CDLL(job.library)
        family.bind(library)
    except OSError as error:
        raise SessionFailed(f"librkllmrt.so does not load: {_reason(error)}") from error
    except AttributeError as error:
        raise SessionFailed(f"librkllmrt.so lacks a function of family {job.family}: {_reason(error)}") from error
    if not job.certain:
        param: AnyParam = library.rkllm_createDefaultParam()
        likely = families_of_default(param)
        if job.family not in likely:
            raise SessionFailed(
                f"librkllmrt.so was taken for family {job.family}, but its defaults are those of"
                f" {' or '.join(likely) or 'none'}: set npu_abi to the family it is, if you know it"
            )
    return library


def _reason(error: Exception) -> str:
    """What the loader said, without the folder that the library lies in."""
    return str(error).rpartition("/")[2]


def _param(job: Job, types: Any) -> Any:
    """Every field set by us: what the library's own defaults leave unwritten differs between releases."""
    param = types["RKLLMParam"]()
    param.model_path = os.fsencode(job.model)
    param.max_context_len = job.context
    param.max_new_tokens = 1
    param.top_k, param.top_p, param.temperature, param.repeat_penalty = 1, 0.9, 0.8, 1.1
    param.mirostat_tau, param.mirostat_eta = 5.0, 0.1
    param.skip_special_token = True
    if "n_keep" in _names(param):
        param.n_keep = -1
    for name in ("img_start", "img_end", "img_content"):
        if name in _names(param):
            setattr(param, name, b"")
    extend = param.extend_param
    extend.base_domain_id = job.domain
    if "embed_flash" in _names(extend):
        extend.embed_flash = int(job.embed_flash)
        extend.enabled_cpus_num = len(job.cpus)
        extend.enabled_cpus_mask = sum(1 << cpu for cpu in job.cpus)
    if "n_batch" in _names(extend):
        extend.n_batch = 1
        extend.use_cross_attn = 0
    return param
