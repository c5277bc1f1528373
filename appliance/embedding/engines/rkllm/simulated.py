"""An NPU for people without one: a library that obeys the runtime's interface, and a model for it that is no model.

Its vectors are lexical, like feature hashing: texts are near when they share words. It is built from the C sources in
`native/` with the system's compiler, once, and is never used unless it was asked for.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.embedding.engines.rkllm.abi import Family
from appliance.embedding.spec import Card, RkllmRerankerSpec, RkllmSpec
from appliance.errors import EngineUnavailable

NAME: Final = "simulated-npu"
"""Of the card."""

DIMENSIONS: Final = 1024
CONTEXT: Final = 4096
EOS: Final = 256
YES: Final = 259
NO: Final = 260
_SPECIALS: Final = {"<|endoftext|>": EOS, "<|im_start|>": 257, "<|im_end|>": 258, "<|yes|>": YES, "<|no|>": NO}
VOCABULARY: Final = 256 + len(_SPECIALS)

MODEL: Final[Mapping[str, object]] = {
    "toolkit": "1.2.3",
    "platform": "RK3588",
    "cores": 3,
    "max_context": CONTEXT,
    "dtype": "W8A8",
    "dim": DIMENSIONS,
    "vocab": VOCABULARY,
    "eos": EOS,
    "weights": 4096,
    "task": "embed",
    "yes": YES,
    "no": NO,
}
"""What a model file says of itself, unless a test wants another."""


class Prepared(NamedTuple):
    """Cards of the simulated models, and the library that runs them. Family A has no reranker."""

    embeds: RkllmSpec
    reranks: RkllmRerankerSpec | None
    library: Path

    @property
    def cards(self) -> list[Card]:
        """Those there are."""
        return [self.embeds] if self.reranks is None else [self.embeds, self.reranks]


def prepared(sources: Path, folder: Path, *, family: Family = "C") -> Prepared:
    """The simulated models; what is missing of them in `folder` is made first.

    Args:
        sources: folder of the runtime's C sources.
        folder: where what is made of them is kept.
        family: of the interface.

    Raises:
        EngineUnavailable: there is no C compiler, or it fails, or the folder cannot be written.
    """
    model, tokenizer = folder / "simulated.rkllm", folder / "tokenizer.json"
    try:
        library = build_library(sources, folder, family=family)
        write_model(model)
        write_tokenizer(tokenizer)
    except OSError as error:
        raise EngineUnavailable(f"the simulated NPU cannot be made: {(error.strerror or 'failed').lower()}") from error
    same: dict[str, Any] = {
        "license": "mit",
        "family": "simulated",
        "engine": "rkllm",
        "platform": "rk3588",
        "own": (str(model), str(tokenizer)),
        "model": str(model),
        "tokenizer": str(tokenizer),
        "context": CONTEXT,
        "max_tokens": CONTEXT - 8,
        "vocabulary": VOCABULARY,
    }
    embeds = RkllmSpec(
        name=NAME,
        description="No model: a simulated NPU whose vectors tell which words texts share, to try the NPU's path.",
        dimensions=DIMENSIONS,
        min_dimensions=32,
        eos=EOS,
        **same,
    )
    if family == "A":
        return Prepared(embeds, None, library)
    reranks = RkllmRerankerSpec(
        name=f"{NAME}-reranker",
        description="No model: a simulated NPU that counts the words which query and passage share.",
        task="rerank",
        yes=YES,
        no=NO,
        opening="<|im_start|>user\n",
        before="<Instruct>: Find passages that answer\n<Query>: ",
        between="\n<Document>: ",
        closing="<|im_end|>\n<|im_start|>assistant\n",
        **same,
    )
    return Prepared(embeds, reranks, library)


def build_library(
    sources: Path, folder: Path, *, family: Family = "C", compiler: str = "cc", version: str = ""
) -> Path:
    """Compile the simulated runtime of one family, unless that was done before; its path.

    Args:
        sources: folder of `runtime.c`.
        folder: made if it is not there. Each version of the sources has a folder of its own below it.
        family: of the interface.
        compiler: a C compiler, for this machine or another.
        version: that the library claims to be; the family's usual one if left out.

    Raises:
        EngineUnavailable: there is no such compiler, or it fails.
    """
    source = sources / "runtime.c"
    identity = hashlib.sha256(f"{family} {compiler} {version}".encode())
    for path in sorted(sources.glob("*.[ch]")):
        identity.update(path.read_bytes())
    library = folder / identity.hexdigest()[:16] / "librkllmrt.so"
    if library.exists():
        return library
    command = shutil.which(compiler)
    if command is None:
        raise EngineUnavailable(
            f"the simulated NPU is built with a C compiler, and there is no {compiler}: install gcc"
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    part = library.with_name(f"{library.name}.{os.getpid()}.part")
    options = ["-shared", "-fPIC", "-O2", "-std=c11", f"-DFAMILY={family}"]
    options += [f'-DVERSION="{version}"'] if version else []
    done = subprocess.run(  # noqa: S603 - the compiler that was asked for, on our own source
        [command, *options, "-o", str(part), str(source), "-lm", "-lpthread"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        part.unlink(missing_ok=True)
        told = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise EngineUnavailable(f"the simulated NPU cannot be built: {told}")
    part.replace(library)
    return library


def write_model(path: Path, **differing: object) -> None:
    """Write a model file as the simulated runtime reads it: `MODEL`, but for what differs, and padding."""
    values = {**MODEL, **differing}
    head = "RKLLM-SIMULATED-MODEL 1\n" + "".join(f"{name} = {value}\n" for name, value in values.items()) + "\n"
    _write(path, head.encode() + bytes(int(str(values["weights"]))))


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer whose tokens are bytes, id and value alike, and that ends every text with `EOS`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", EOS)]
    )
    _write(path, tokenizer.to_str(pretty=True).encode())


def _write(path: Path, content: bytes) -> None:
    """In one piece, and only if it is not what is there: a server may be reading."""
    if path.exists() and path.read_bytes() == content:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


def _byte_vocabulary() -> dict[str, int]:
    """Byte-level BPE writes each byte as one letter: itself where it is visible in Latin-1, else one from U+0100 on
    (Radford et al. 2019).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return {chr(byte if byte in visible else next(hidden)): byte for byte in range(256)}
