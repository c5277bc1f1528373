"""Every mistake that callers of librkllmrt.so are known to have made: what comes of it, and that we do not make it.

A wrong caller is a small program, run in a process of its own against the simulated runtime: it does all of
`Caller` right but for a line or two. What owners of boards report of that mistake must happen to it; our engine, in the
same place, must give the vector that is right. The mistakes are those of a wrong family, the causes for which
Qwen3-Embedding is called incompatible, and the faults of another server's /api/embed.

Those of its faults that no runtime sees are kept out elsewhere:

    a model that is not named       tests/api/test_ollama.py     test_a_model_that_is_not_there_is_told_in_ollamas_words
    truncate, dimensions, keep_alive and encoding_format, ignored
                                    tests/api/test_ollama.py     test_truncate_false_refuses_what_is_too_long,
                                                                 test_dimensions_cut_and_scale_again,
                                                                 test_ps_lists_what_is_loaded_and_until_when
                                    tests/api/test_openai.py     test_base64_holds_the_same_vector_as_the_list
    a batch without order or lock   tests/embedding/test_batcher.py, and below
    a list from /api/embeddings     tests/api/test_ollama.py     test_the_legacy_endpoint_gives_one_vector_of_length_one
    a batch joined to one vector    tests/api/test_openai.py     test_order_and_count_are_kept

The simulation loses no quality as w8a8 does: test_a_reference_vector_tells_a_bad_conversion in test_engine.py stands
for that.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import Matrix, Vector
from appliance.embedding.engines.rkllm.abi import FAMILIES, CallState, Family
from appliance.embedding.engines.rkllm.process import inherited
from appliance.embedding.engines.rkllm.simulated import CONTEXT, EOS, VOCABULARY, write_model
from appliance.embedding.pooling import normalized
from appliance.errors import EngineFailed, EngineUnavailable, InputTooLong, InvalidInput

Make: TypeAlias = Callable[..., Any]
Right: TypeAlias = Mapping[str, Vector]
"""The vectors that the texts below should have."""

TEXT = "How do I grow tomatoes in pots?"
OTHER = "The central bank raised interest rates"
LONG = "word " * CONTEXT

CALLER = """
import ctypes, json, mmap, resource, sys, threading, time
from appliance.embedding.engines.rkllm.abi import AnyParam, CallState, InferMode, InputType, abi, families_of_default

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
LIBRARY, MODEL, FAMILY, TEXT, OTHER, LONG, *GIVEN = sys.argv[1:]
END = 256
library = ctypes.CDLL(LIBRARY)  # without types: whatever a function returns comes back as it is


def tell(**found):
    print(json.dumps(found), flush=True)


def defaults(types):
    param = types["RKLLMParam"]()
    library.rkllm_createDefaultParam.restype = AnyParam
    ctypes.memmove(ctypes.byref(param), ctypes.byref(library.rkllm_createDefaultParam()), ctypes.sizeof(param))
    return param


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE >> 20  # MiB


class Caller:
    '''Speaks to a library of one family as one should.'''

    def __init__(self, family=FAMILY):
        self.types = types = abi(family).types
        self.handle = ctypes.c_void_p()
        self.vector, self.rows, self.states, self.code = None, 0, [], None
        self.answer = 2 if family == "D" else 0
        self.callback = types["LLMResultCallback"](lambda result, _, state: self.on_result(result.contents, state))
        self.input, self.infer = types["RKLLMInput"](), types["RKLLMInferParam"]()
        self.infer.mode = InferMode.GET_LAST_HIDDEN_LAYER
        # What is given lies above 4 GiB, as all that a process on a board has.
        self.memory = mmap.mmap(-1, 1 << 20)
        self.param = param = types["RKLLMParam"]()
        param.model_path, param.max_context_len, param.max_new_tokens, param.top_k = MODEL.encode(), 4096, 1, 1
        if family != "A":
            param.n_keep = -1
            param.extend_param.enabled_cpus_num, param.extend_param.enabled_cpus_mask = 4, 0xF0
        if family != "D":
            param.img_start = param.img_end = param.img_content = b""
        if family in "CD":
            param.extend_param.n_batch = 1
            self.input.role = b"user"

    def init(self, callback=None):
        given = callback or self.callback
        if "RKLLMCallback" in self.types:
            self.callbacks = self.types["RKLLMCallback"](result_callback=given)
            given = ctypes.byref(self.callbacks)
        return library.rkllm_init(ctypes.byref(self.handle), ctypes.byref(self.param), given)

    def clear(self):
        if hasattr(library, "rkllm_clear_kv_cache"):
            return library.rkllm_clear_kv_cache(self.handle, 0, None, None)

    def tokens(self, ids):
        array = (ctypes.c_int32 * len(ids)).from_buffer(self.memory)
        array[:] = ids
        self.input.input_type = InputType.TOKEN
        self.input.value.token_input.input_ids = array
        self.input.value.token_input.n_tokens = len(ids)

    def prompt(self, text):
        content = text.encode() + bytes(1)
        self.memory[: len(content)] = content
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.input.input_type = InputType.PROMPT
        self.input.value.prompt_input = address

    def fill(self, text):
        self.tokens([*text.encode(), END])

    def run(self, text=TEXT):
        self.fill(text)
        self.code = library.rkllm_run(self.handle, ctypes.byref(self.input), ctypes.byref(self.infer), None)
        return self.vector

    def embed(self, text=TEXT):
        self.vector = None
        self.clear()
        return self.run(text)

    def on_result(self, result, state):
        self.states.append(state)
        self.take(result.last_hidden_layer)
        return self.answer

    def take(self, found):
        if found.hidden_states and found.num_tokens > 0:
            self.rows = found.num_tokens
            last = (self.rows - 1) * found.embd_size
            self.vector = found.hidden_states[last : last + found.embd_size]


caller = Caller()
"""


@dataclass(frozen=True)
class Ending:
    """How a program ended: by a signal ("" for none), what it told last, what the runtime said in its error output."""

    signal: str
    told: dict[str, Any]
    said: str


def play(npu: Any, program: str, *given: str, library: Path | None = None, cpus: int = 8) -> Ending:
    """Run a program after `CALLER`; `given` is its GIVEN."""
    arguments = [str(library or npu.library), str(npu.model), npu.family, TEXT, OTHER, LONG, *given]
    done = subprocess.run(
        [sys.executable, "-c", CALLER + dedent(program), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env=inherited() | {"RKLLM_SIM_CPUS": str(cpus)},
    )
    assert done.returncode <= 0, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return Ending(
        signal.Signals(-done.returncode).name if done.returncode else "",
        json.loads(told[-1]) if told else {},
        done.stderr,
    )


def embed(engine: Any, *texts: str) -> Matrix:
    return np.concatenate([engine.run([prompt]) for prompt in engine.prepare(texts, truncate=True)])


def cosine(one: Any, other: Any) -> float:
    a, b = normalized(np.array([one, other], np.float32))
    return float(a @ b)


@pytest.fixture(scope="session")
def right(libraries: Make, tmp_path_factory: pytest.TempPathFactory) -> Right:
    """The vectors that are right, each from a process in which nothing else was read."""
    folder = tmp_path_factory.mktemp("right")
    write_model(folder / "model.rkllm")
    npu = SimpleNamespace(library=libraries("C"), model=folder / "model.rkllm", family="C")

    def alone(text: str) -> Vector:
        found = play(npu, "caller.init(); tell(vector=caller.embed(GIVEN[0]))", text)
        return np.array(found.told["vector"], np.float32)

    return {TEXT: alone(TEXT), OTHER: alone(OTHER), LONG: alone(LONG[: CONTEXT - 8 - 1])}


def test_texts_that_share_nothing_are_far_apart(right: Right) -> None:
    assert abs(cosine(right[TEXT], right[OTHER])) < 0.3


@pytest.mark.parametrize(
    ("family", "version"),
    [("A", "1.1.0"), ("B", "1.2.1b1"), ("C", "1.2.1"), ("C", "1.2.2"), ("C", "1.2.3"), ("D", "1.3.0")],
)
def test_who_does_everything_right_gets_the_vectors_that_our_engine_gives(
    family: Family, version: str, simulated: Make, right: Right
) -> None:
    npu = simulated(family, version=version)

    ending = play(
        npu, "code = caller.init(); tell(init=code, a=caller.embed(TEXT), b=caller.embed(OTHER), run=caller.code)"
    )

    assert (ending.signal, ending.told["init"], ending.told["run"]) == ("", 0, 0)
    assert np.array_equal([ending.told["a"], ending.told["b"]], [right[TEXT], right[OTHER]])
    assert np.array_equal(embed(npu.open(), TEXT, OTHER), [right[TEXT], right[OTHER]])


# Speaking to a library as if it were of another family


def test_a_bare_function_given_to_1_3_crashes_in_the_first_run(simulated: Make, right: Right) -> None:
    npu = simulated("D")

    ending = play(
        npu,
        """
        tell(init=library.rkllm_init(ctypes.byref(caller.handle), ctypes.byref(caller.param), caller.callback))
        caller.embed()
        """,
    )

    assert ending.told == {"init": 0}
    assert ending.signal == "SIGSEGV"
    assert "the callback is no function" in ending.said
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", ["A", "B", "C"])
def test_the_callbacks_of_1_3_given_to_an_older_one_crash_in_the_first_run(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        newer = Caller("D")
        callbacks = newer.types["RKLLMCallback"](result_callback=newer.callback)
        tell(init=library.rkllm_init(ctypes.byref(caller.handle), ctypes.byref(caller.param), ctypes.byref(callbacks)))
        caller.embed()
        """,
    )

    assert ending.told == {"init": 0}
    assert ending.signal == "SIGSEGV"
    assert "the callback is no function" in ending.said
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", ["C", "D"])
def test_clearing_with_two_arguments_crashes_from_1_2_1_on(family: Family, simulated: Make, right: Right) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.init()
        tell(vector=caller.embed())
        for _ in range(100):  # the library reads what lies in the registers: mostly no address
            library.rkllm_clear_kv_cache(caller.handle, ctypes.c_int(0))
            caller.embed()
        """,
    )

    assert np.array_equal(ending.told["vector"], right[TEXT])
    assert ending.signal == "SIGSEGV"
    assert np.array_equal(embed(npu.open(), OTHER, TEXT), [right[OTHER], right[TEXT]])


@pytest.mark.parametrize("arguments", ["0", "0, None, None"])
def test_clearing_with_two_arguments_or_four_harms_nobody_in_1_2_0(
    arguments: str, simulated: Make, libraries: Make, right: Right
) -> None:
    npu = simulated("B")
    program = f"""
        caller.init()
        caller.embed(OTHER)
        code = library.rkllm_clear_kv_cache(caller.handle, {arguments})
        tell(code=code, vector=caller.run(TEXT))
        """

    for library in (npu.library, libraries("B0", version="1.2.0")):
        ending = play(npu, program, library=library)

        assert (ending.signal, ending.told["code"]) == ("", 0)
        assert np.array_equal(ending.told["vector"], right[TEXT])
    assert np.array_equal(embed(npu.open(), OTHER, TEXT), [right[OTHER], right[TEXT]])


@pytest.mark.parametrize("family", ["C", "D"])
@pytest.mark.parametrize("fill", ["fill", "prompt"])
def test_an_input_laid_out_as_in_1_2_0_is_refused_from_1_2_1_on(
    family: Family, fill: str, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.input = abi("B").types["RKLLMInput"]()
        caller.fill = getattr(caller, GIVEN[0])
        caller.init()
        tell(vector=caller.embed(), code=caller.code)
        """,
        fill,
    )

    assert (ending.signal, ending.told) == ("", {"vector": None, "code": -1})
    assert "invalid input type" in ending.said
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


def test_a_binding_of_1_2_0_fails_on_1_2_2_as_was_reported(simulated: Make, right: Right) -> None:
    npu = simulated("C", version="1.2.2")

    ending = play(
        npu,
        """
        caller = Caller("B")
        caller.param = defaults(caller.types)
        caller.param.model_path, caller.param.max_context_len = MODEL.encode(), 4096
        init = caller.init()
        caller.run()
        tell(init=init, run=caller.code, vector=caller.vector)
        library.rkllm_clear_kv_cache(caller.handle, ctypes.c_int(0))
        """,
    )

    assert ending.told == {"init": 0, "run": -1, "vector": None}
    assert ending.signal == "SIGSEGV"
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


def test_parameters_laid_out_as_in_1_2_are_refused_by_1_3(simulated: Make, right: Right) -> None:
    npu = simulated("D")

    ending = play(
        npu,
        """
        caller.param = Caller("C").param
        tell(code=caller.init(), handle=caller.handle.value)
        """,
    )

    assert (ending.signal, ending.told) == ("", {"code": -1, "handle": None})
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", ["A", "B", "C"])
def test_parameters_laid_out_as_in_1_3_crash_what_is_older(family: Family, simulated: Make, right: Right) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.param = Caller("D").param
        tell(reached=True)
        tell(code=caller.init())
        """,
    )

    assert (ending.signal, ending.told) == ("SIGSEGV", {"reached": True})
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize(
    ("family", "part"), [("A", "logits.vocab_size"), ("A", "perf.prefill_tokens"), ("B", "perf.prefill_tokens")]
)
def test_a_result_read_further_than_its_family_has_it_crashes(
    family: Family, part: str, simulated: Make, right: Right
) -> None:
    npu = simulated(family)
    program = """
        from operator import attrgetter
        callback = abi("C").types["LLMResultCallback"]
        caller.callback = callback(lambda result, _, state: attrgetter(GIVEN[0])(result.contents))
        tell(init=caller.init())
        caller.embed()
        tell(read=True)
        """

    ending = play(npu, program, part)

    assert (ending.signal, ending.told) == ("SIGSEGV", {"init": 0})
    assert play(npu, program, "token_id").told == {"read": True}
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize(("family", "looks_like"), [("A", "A"), ("B", "BC"), ("C", "BC"), ("D", "D")])
def test_defaults_taken_into_too_large_a_struct_are_whole_and_tell_the_family(
    family: Family, looks_like: str, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.param = defaults(caller.types)
        caller.param.model_path, caller.param.max_context_len = MODEL.encode(), 4096
        looks_like = families_of_default(library.rkllm_createDefaultParam())
        tell(looks_like=looks_like, init=caller.init(), vector=caller.embed())
        """,
    )

    assert (ending.signal, ending.told["looks_like"], ending.told["init"]) == ("", looks_like, 0)
    assert np.array_equal(ending.told["vector"], right[TEXT])


@pytest.mark.parametrize(
    ("family", "taken_for"), [(family, other) for family in FAMILIES for other in FAMILIES if other != family]
)
def test_a_wrong_npu_abi_costs_a_process_and_not_the_server(
    family: Family, taken_for: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    with pytest.raises(EngineUnavailable, match=r"cannot be loaded|is not served"):
        npu.open(npu=npu.npu(family=taken_for))

    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


# Results that are missed, and results that are read when they are gone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_callback_that_init_was_not_given_never_hears_anything(family: Family, simulated: Make, right: Right) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        callbacks = {"embedding": caller.callback}
        other = caller.types["LLMResultCallback"](lambda result, _, state: 0)
        caller.init(other)
        tell(vector=caller.embed(), code=caller.code, states=caller.states)
        """,
    )

    assert (ending.signal, ending.told) == ("", {"vector": None, "code": 0, "states": []})
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize(
    ("family", "state"),
    [
        *((family, CallState.FINISH) for family in FAMILIES),
        ("A", CallState.NORMAL),
        *((family, CallState.GET_LAST_HIDDEN_LAYER) for family in FAMILIES[1:]),
    ],
)
def test_states_do_not_come_with_the_end_nor_with_another_familys_news(
    family: Family, state: CallState, simulated: Make, right: Right
) -> None:
    npu = simulated(family)
    program = """
        def on_result(result, state):
            caller.states.append(state)
            if state in map(int, GIVEN):
                caller.take(result.last_hidden_layer)
            return 0
        caller.on_result = on_result
        caller.init()
        tell(vector=caller.embed(), code=caller.code, ended=CallState.FINISH in caller.states)
        """

    ending = play(npu, program, str(int(state)))

    assert (ending.signal, ending.told) == ("", {"vector": None, "code": 0, "ended": True})
    assert np.array_equal(play(npu, program, *"01234").told["vector"], right[TEXT])
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_call_has_no_states_and_who_copies_them_all_the_same_crashes(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        def on_result(result, state):
            tell(called=True)
            ctypes.memmove(ctypes.create_string_buffer(4096), result.last_hidden_layer.hidden_states, 4096)
            tell(copied=True)
            return 0
        caller.on_result = on_result
        caller.init()
        caller.embed()
        """,
    )

    assert (ending.signal, ending.told) == ("SIGSEGV", {"called": True})
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", FAMILIES)
def test_states_that_are_read_when_the_callback_has_returned_are_gone(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        def on_result(result, state):
            if result.last_hidden_layer.hidden_states:
                caller.kept = ctypes.cast(result.last_hidden_layer.hidden_states, ctypes.POINTER(ctypes.c_float))
                tell(number=caller.kept[0])
            return 0
        caller.on_result = on_result
        caller.init()
        caller.embed()
        tell(number=caller.kept[0], late=True)
        """,
    )

    assert ending.signal == "SIGSEGV"
    assert set(ending.told) == {"number"}
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


def test_copying_every_state_number_by_number_holds_the_runtime_up_and_one_row_does_not(npu: Any) -> None:
    ending = play(
        npu,
        """
        from appliance.embedding.engines.rkllm.session import Job, Session

        taken = {"theirs": [], "ours": []}

        def timed(name, copy, *arguments):
            begun = time.perf_counter()
            answer = copy(*arguments)
            taken[name].append(time.perf_counter() - begun)
            return answer

        def copied(found):
            return [found.hidden_states[n] for n in range(found.num_tokens * found.embd_size)]

        class Ours(Session):
            def _take_states(self, found):
                return timed("ours", super()._take_states, found) if found.hidden_states else 0

        def on_result(result, state):
            found = result.last_hidden_layer
            if found.hidden_states:
                timed("theirs", copied, found)
            return 0

        caller.on_result = on_result
        caller.init()
        caller.embed("word " * 100)
        ours = Ours(Job(LIBRARY, "C", False, MODEL, 4096, "last", 1024, 0, False, [0]))
        into = (ctypes.c_float * 1024)()
        ids = (ctypes.c_int32 * 501)(*(b"word " * 100), END)
        for _ in range(5):
            ours.embed(ctypes.addressof(ids), len(ids), into=ctypes.addressof(into))
        ours.close()
        tell(theirs=min(taken["theirs"]), ours=min(taken["ours"]))
        """,
    )

    assert ending.signal == ""
    assert ending.told["theirs"] > 20 * ending.told["ours"]


@pytest.mark.parametrize(
    ("family", "answer", "loses"), [("C", 0, True), ("C", 2, True), ("D", 0, True), ("D", 2, False)]
)
def test_memory_is_lost_unless_1_3_is_told_to_release_it(
    family: Family,
    answer: int,
    loses: bool,  # noqa: FBT001 - a case
    simulated: Make,
) -> None:
    npu = simulated(family, leak_kb=1024)

    ending = play(
        npu,
        """
        caller.answer = int(GIVEN[0])
        caller.init()
        for _ in range(5):
            caller.embed()
        before = resident()
        for _ in range(40):
            caller.embed()
        tell(lost=resident() - before)
        """,
        str(answer),
    )

    assert ending.signal == ""
    assert (30 < ending.told["lost"] < 50) if loses else ending.told["lost"] < 10


@pytest.mark.parametrize(("family", "begun_anew"), [("C", True), ("D", False)])
def test_we_tell_1_3_to_release_memory_and_win_it_back_from_1_2_3(
    family: Family,
    begun_anew: bool,  # noqa: FBT001 - a case
    simulated: Make,
    right: Right,
) -> None:
    npu = simulated(family, leak_kb=2048)
    engine = npu.open(memory=64)

    for _ in range(48):
        assert np.array_equal(embed(engine, TEXT), [right[TEXT]])

    assert set(npu.restarts) == ({"memory"} if begun_anew else set())


# Inputs that are not what the model was trained on


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_wrapped_and_has_no_end_so_that_all_texts_look_alike(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.fill = caller.prompt
        caller.init()
        tell(a=caller.embed(TEXT), rows=caller.rows, b=caller.embed(OTHER))
        """,
    )

    assert ending.told["rows"] > len(TEXT) + 1
    assert cosine(ending.told["a"], ending.told["b"]) > 0.9
    a, b = embed(npu.open(), TEXT, OTHER)
    assert np.array_equal([a, b], [right[TEXT], right[OTHER]])
    assert abs(cosine(a, b)) < 0.3


@pytest.mark.parametrize("family", ["B", "C", "D"])
@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ('b"", None, None', -1),
        ('b"", b"", None', -1),
        ('b"", b"", b"<|im_end|>\\n<|im_start|>assistant\\n"', 0),
        ('b"", b"<|im_start|>user\\n", b""', 0),
    ],
)
def test_a_template_of_which_not_all_three_parts_are_replaced_still_wraps(
    family: Family, parts: str, code: int, simulated: Make
) -> None:
    ending = play(
        simulated(family),
        f"""
        caller.fill = lambda text: caller.prompt(text + "<|endoftext|>")
        caller.init()
        code = library.rkllm_set_chat_template(caller.handle, {parts})
        tell(code=code, vector=caller.embed(TEXT), rows=caller.rows)
        """,
    )

    assert ending.told["code"] == code
    assert ending.told["rows"] > len(TEXT) + 1


@pytest.mark.parametrize("family", ["B", "C", "D"])
def test_an_empty_template_is_not_enough_where_the_end_is_missing(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.fill = caller.prompt
        caller.init()
        code = library.rkllm_set_chat_template(caller.handle, b"", b"", b"")
        tell(code=code, a=caller.embed(TEXT), rows=caller.rows, b=caller.embed(OTHER),
             ended=caller.embed(TEXT + "<|endoftext|>"))
        """,
    )

    assert (ending.told["code"], ending.told["rows"]) == (0, len(TEXT))
    assert cosine(ending.told["a"], ending.told["b"]) > 0.9
    assert np.array_equal(ending.told["ended"], right[TEXT])


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_without_the_end_look_alike_too(family: Family, simulated: Make, right: Right) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.fill = lambda text: caller.tokens([*text.encode()])
        caller.init()
        tell(a=caller.embed(TEXT), b=caller.embed(OTHER))
        """,
    )

    assert cosine(ending.told["a"], ending.told["b"]) > 0.9
    assert np.array_equal(embed_ids(npu.open(), [*TEXT.encode()]), right[TEXT])


@pytest.mark.parametrize(("family", "token"), [("A", 151643), ("B", VOCABULARY), ("C", -1), ("D", 151643)])
def test_a_token_that_the_model_does_not_have_crashes_and_never_reaches_it_from_here(
    family: Family, token: int, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.fill = lambda text: caller.tokens([*text.encode(), int(GIVEN[0])])
        tell(init=caller.init())
        caller.embed()
        """,
        str(token),
    )
    engine = npu.open()

    assert (ending.signal, ending.told) == ("SIGSEGV", {"init": 0})
    assert "beyond the vocabulary" in ending.said
    with pytest.raises(InvalidInput, match=f"from 0 to {VOCABULARY - 1}"):
        engine.prepare([[*TEXT.encode(), token]], truncate=True)
    assert np.array_equal(embed(engine, TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_is_too_long_gets_no_answer_and_we_cut_it_before_its_end(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(npu, "caller.init(); tell(vector=caller.embed(LONG), code=caller.code, states=caller.states)")
    engine = npu.open()
    (prompt,) = engine.prepare([LONG], truncate=True)

    assert (ending.signal, ending.told) == ("", {"vector": None, "code": 0, "states": [CallState.FINISH]})
    assert "prompt greater than max context" in ending.said
    assert (prompt.tokens, prompt.truncated, prompt.content[-1]) == (CONTEXT - 8, True, EOS)
    assert np.array_equal(engine.run([prompt]), [right[LONG]])
    with pytest.raises(InputTooLong):
        engine.prepare([LONG], truncate=False)


# What is left of one text when the next one is read


@pytest.mark.parametrize("family", ["B", "C", "D"])
def test_what_is_not_cleared_stands_before_the_next_text_whatever_keep_history_says(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.infer.keep_history = 0
        caller.init()
        tell(first=caller.run(TEXT), second=caller.run(TEXT), third=caller.run(OTHER))
        """,
    )

    assert np.array_equal(ending.told["first"], right[TEXT])
    assert not np.array_equal(ending.told["second"], right[TEXT])
    assert cosine(ending.told["third"], right[OTHER]) < 0.9
    assert cosine(ending.told["third"], right[TEXT]) > 0.5
    found = embed(npu.open(), TEXT, TEXT, OTHER, TEXT)
    assert np.array_equal(found, [right[TEXT], right[TEXT], right[OTHER], right[TEXT]])


def test_1_1_has_nothing_to_clear_with_and_one_that_remembers_is_not_served(simulated: Make) -> None:
    npu = simulated("A", contaminates=1)

    ending = play(npu, "caller.init(); tell(a=caller.embed(TEXT), b=caller.embed(TEXT))")

    assert not np.array_equal(ending.told["a"], ending.told["b"])
    with pytest.raises(EngineUnavailable, match="other vectors for a text when it has read one before"):
        npu.open()


@pytest.mark.parametrize("family", ["B", "C", "D"])
def test_what_is_never_cleared_fills_the_context_until_no_text_fits(family: Family, simulated: Make) -> None:
    npu = simulated(family)
    text = "word " * 200

    ending = play(
        npu,
        """
        caller.init()
        answered = []
        for _ in range(5):
            caller.vector = None
            answered.append(caller.run("word " * 200) is not None)
        tell(answered=answered)
        """,
    )

    assert ending.told["answered"] == [True] * 4 + [False]
    assert "prompt greater than max context" in ending.said
    found = embed(npu.open(), *[text] * 6)
    assert np.array_equal(found, [found[0]] * 6)


# Settings that a model is opened with


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_opened_as_async_returns_before_there_is_an_answer(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)
    engine = npu.open()
    npu.faults(run_ms=50)

    ending = play(
        npu,
        """
        caller.param.is_async = True
        caller.init()
        at_once, code = caller.embed(), caller.code
        while CallState.FINISH not in caller.states:
            time.sleep(0.01)
        tell(code=code, at_once=at_once, later=caller.vector)
        """,
    )

    assert (ending.signal, ending.told["code"], ending.told["at_once"]) == ("", 0, None)
    assert np.array_equal(ending.told["later"], right[TEXT])
    assert np.array_equal(embed(engine, TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", ["C", "D"])
@pytest.mark.parametrize(("n_batch", "signal_"), [(3, ""), (0, "SIGSEGV"), (77, "SIGSEGV")])
def test_more_than_one_text_at_a_time_has_no_states_and_nonsense_crashes(
    family: Family, n_batch: int, signal_: str, simulated: Make, right: Right
) -> None:
    npu = simulated(family)

    ending = play(
        npu,
        """
        caller.param.extend_param.n_batch = int(GIVEN[0])
        tell(init=caller.init())
        tell(vector=caller.embed(), code=caller.code)
        """,
        str(n_batch),
    )

    assert ending.signal == signal_
    assert ending.told == ({"init": 0} if signal_ else {"vector": None, "code": -1})
    assert ("inputs were read that do not exist" if signal_ else "not supported for multiple batches") in ending.said
    assert np.array_equal(embed(npu.open(), TEXT, OTHER), [right[TEXT], right[OTHER]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_larger_than_the_models_is_refused_and_we_tell_both(family: Family, simulated: Make) -> None:
    npu = simulated(family)

    ending = play(npu, "caller.param.max_context_len = 16384; tell(code=caller.init(), handle=caller.handle.value)")

    assert (ending.signal, ending.told) == ("", {"code": -1, "handle": None})
    assert "exceeds the max_context_limit" in ending.said
    with pytest.raises(EngineUnavailable, match="max_context_len 16384 exceeds the max_context_limit 4096"):
        npu.open(context=16384)


@pytest.mark.parametrize("family", FAMILIES)
def test_who_goes_on_with_a_model_that_was_refused_gets_nothing(family: Family, simulated: Make) -> None:
    npu = simulated(family)
    npu.faults(init_fail=1)

    ending = play(npu, "caller.init(); tell(vector=caller.embed(), code=caller.code, states=caller.states)")

    assert (ending.signal, ending.told) == ("", {"vector": None, "code": -1, "states": []})
    with pytest.raises(EngineUnavailable, match="rkllm_init returned -1"):
        npu.open()


@pytest.mark.parametrize("family", ["B", "C", "D"])
def test_default_cpus_are_only_there_on_boards_of_four_or_eight(
    family: Family, simulated: Make, right: Right, monkeypatch: pytest.MonkeyPatch
) -> None:
    npu = simulated(family)
    monkeypatch.setenv("RKLLM_SIM_CPUS", "6")
    program = """
        caller.param = defaults(caller.types)
        caller.param.model_path, caller.param.max_context_len = MODEL.encode(), 4096
        tell(code=caller.init())
        """

    endings = {cpus: play(npu, program, cpus=cpus) for cpus in (4, 6, 8)}

    assert {cpus: ending.told["code"] for cpus, ending in endings.items()} == {4: 0, 6: -1, 8: 0}
    assert "invalid enabled_cpus_mask" in endings[6].said
    assert np.array_equal(embed(npu.open(), TEXT), [right[TEXT]])


@pytest.mark.parametrize("family", ["B", "C", "D"])
@pytest.mark.parametrize("part", ["enabled_cpus_num", "enabled_cpus_mask"])
def test_parameters_of_zeros_that_nobody_fills_are_refused(family: Family, part: str, simulated: Make) -> None:
    ending = play(simulated(family), "setattr(caller.param.extend_param, GIVEN[0], 0); tell(code=caller.init())", part)

    assert (ending.signal, ending.told) == ("", {"code": -1})
    assert f"invalid {part}: 0" in ending.said


@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_written_as_a_float_makes_the_model_babble(family: Family, simulated: Make) -> None:
    npu = simulated(family)
    program = """
        place = type(caller.param).top_k.offset
        if GIVEN:
            ctypes.c_float.from_buffer(caller.param, place).value = 40.0
        caller.param.max_new_tokens, caller.infer.mode = 4, InferMode.GENERATE
        words = []
        def on_result(result, state):
            words.append(result.text or b"")
            return 0
        caller.on_result = on_result
        caller.init()
        caller.embed()
        tell(top_k=caller.param.top_k, words=b"".join(words).decode().removesuffix(" answer. The end"))
        """

    wrong, well = play(npu, program, "float"), play(npu, program)
    engine = npu.open()
    embed(engine, TEXT)

    assert wrong.told["top_k"] == 1109393408
    assert set(wrong.told["words"]) == {"\N{REPLACEMENT CHARACTER}"}
    assert "W rkllm: top_k = 1109393408" in wrong.said
    assert well.told == {"top_k": 1, "words": "This is a simulated"}
    assert "top_k" not in well.said
    lines = npu.said(engine)
    assert any("max_context_limit" in line for line in lines)
    assert not any("top_k" in line for line in lines)


@pytest.mark.parametrize(
    ("family", "version", "code"),
    [("A", "", -1), ("B", "", -1), ("C", "1.2.1", -1), ("C", "1.2.2", 0), ("C", "1.2.3", 0), ("D", "", 0)],
)
def test_a_second_model_in_one_process_is_refused_before_1_2_2_and_we_have_a_process_for_each(
    family: Family, version: str, code: int, simulated: Make, right: Right
) -> None:
    npu = simulated(family, version=version)

    ending = play(npu, "second = Caller(); tell(first=caller.init(), second=second.init())")
    engines = npu.open(), npu.open()

    assert (ending.signal, ending.told) == ("", {"first": 0, "second": code})
    for engine in engines * 2:
        assert np.array_equal(embed(engine, TEXT), [right[TEXT]])


# What is made of an answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("fault", "code"), [("error_on", -1), ("silent_on", 0)])
def test_who_ignores_a_failure_answers_with_the_text_before(
    family: Family, fault: str, code: int, simulated: Make, right: Right
) -> None:
    npu = simulated(family)
    engine = npu.open()
    npu.faults(**{fault: "poison"})

    ending = play(
        npu,
        """
        caller.init()
        caller.run("a drop of poison")
        at_first = caller.vector
        caller.embed(TEXT)
        caller.clear()
        tell(at_first=at_first, answer=caller.run("a drop of poison"), code=caller.code)
        """,
    )

    assert (ending.signal, ending.told["at_first"], ending.told["code"]) == ("", None, code)
    assert np.array_equal(ending.told["answer"], right[TEXT]), "the vector of another text"
    assert np.array_equal(embed(engine, TEXT), [right[TEXT]])
    with pytest.raises(EngineFailed, match="returned -1" if code else "without an answer"):
        embed(engine, "a drop of poison")
    assert np.array_equal(embed(engine, OTHER), [right[OTHER]])


def test_a_runtime_that_always_answers_with_the_text_before_is_not_served(npu: Any, right: Right) -> None:
    npu.faults(stale=1)

    ending = play(npu, "caller.init(); tell(a=caller.embed(TEXT), b=caller.embed(OTHER), code=caller.code)")

    assert ending.told["code"] == 0
    assert np.array_equal(ending.told["b"], right[TEXT])
    with pytest.raises(EngineUnavailable, match="it gave the vector of the text before"):
        npu.open()


@pytest.mark.parametrize("family", FAMILIES)
def test_two_runs_at_once_on_one_model_abort_and_ours_wait_for_each_other(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)
    engine = npu.open()
    npu.faults(hang=1)

    ending = play(
        npu,
        """
        tell(init=caller.init())
        threading.Thread(target=caller.run, daemon=True).start()
        caller.run()
        """,
    )

    assert (ending.signal, ending.told) == ("SIGABRT", {"init": 0})
    assert "a run was started while another one is running" in ending.said
    npu.faults(run_ms=20)

    async def together() -> list[Matrix]:
        asked = (embedder.embed([text]) for text in (TEXT, OTHER) * 3)
        return [answer.vectors for answer in await asyncio.gather(*asked)]

    with closing(Embedder(npu.spec(), engine)) as embedder:
        found = np.concatenate(asyncio.run(together()))
    assert np.allclose(found, normalized(np.array([right[TEXT], right[OTHER]] * 3)), atol=1e-6)
    assert npu.restarts == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_is_only_given_up_on_is_in_the_way_of_the_next_one_and_we_abort_it(
    family: Family, simulated: Make, right: Right
) -> None:
    npu = simulated(family)
    engine = npu.open(npu=npu.npu(seconds=0.2))
    npu.faults(hang_on="poison")

    ending = play(
        npu,
        """
        tell(init=caller.init())
        idle = library.rkllm_is_running(caller.handle)
        threading.Thread(target=caller.run, args=["a drop of poison"], daemon=True).start()
        while library.rkllm_is_running(caller.handle) == idle:
            time.sleep(0.01)
        caller.embed(TEXT)
        """,
    )

    assert (ending.signal, ending.told) == ("SIGABRT", {"init": 0})
    assert "while" in ending.said
    with pytest.raises(EngineFailed, match=r"longer than 0\.2 s"):
        embed(engine, "a drop of poison")
    assert np.array_equal(embed(engine, TEXT), [right[TEXT]])
    assert npu.restarts == []


def test_states_are_not_of_length_one_and_what_is_served_is(npu: Any, right: Right) -> None:
    ending = play(npu, "caller.init(); tell(vector=caller.embed())")

    raw = np.array(ending.told["vector"], np.float32)
    with closing(Embedder(npu.spec(), npu.open())) as embedder:
        whole = asyncio.run(embedder.embed([TEXT, OTHER])).vectors
        front = asyncio.run(embedder.embed([TEXT], dimensions=64)).vectors

    assert np.linalg.norm(raw) > 2
    assert np.linalg.norm(normalized(raw[None])[:, :64]) < 0.9
    assert np.linalg.norm(whole, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(front, axis=1) == pytest.approx(1, abs=1e-6)
    assert cosine(whole[0], raw) == pytest.approx(1, abs=1e-6)


def embed_ids(engine: Any, ids: list[int]) -> Vector:
    """The vector of token ids, which get the same end as a text."""
    found: Vector = engine.run(engine.prepare([ids], truncate=True))[0]
    return found
