from pathlib import Path
from typing import get_args

import pytest

from appliance.embedding.engines.rkllm.board import platform_of, this_board
from appliance.embedding.fit import Fit, Policy, on_npu
from appliance.embedding.spec import HashSpec, ModelSpec, RkllmSpec

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"


def npu(platform: str) -> RkllmSpec:
    return RkllmSpec(
        name=f"npu-{platform}",
        family="qwen3",
        engine="rkllm",
        platform=platform,
        own=("m.rkllm", "tokenizer.json"),
        model="m.rkllm",
        dimensions=64,
        context=1024,
        max_tokens=1000,
    )


CPU = HashSpec(name="cpu", family="hash", engine="hash", dimensions=64, max_tokens=100)
CARDS: list[ModelSpec] = [npu("rk3576"), CPU, npu("rk3588")]


@pytest.mark.parametrize(
    ("policy", "platform", "here", "wanted"),
    [
        ("auto", "rk3588", {"npu-rk3588", "cpu"}, "npu-rk3588"),
        ("auto", "rk3576", {"npu-rk3576", "cpu"}, "npu-rk3576"),
        ("auto", "rk3588", {"cpu"}, "cpu"),
        ("auto", "", {"npu-rk3588", "cpu"}, "cpu"),
        ("auto", "rk3588", set(), "npu-rk3588"),
        ("cpu", "rk3588", {"npu-rk3588", "cpu"}, "cpu"),
        ("cpu", "rk3588", {"npu-rk3588"}, "cpu"),
        ("npu", "rk3588", {"npu-rk3588", "cpu"}, "npu-rk3588"),
        ("npu", "rk3588", {"cpu"}, "npu-rk3588"),
        ("npu", "", {"cpu"}, "npu-rk3588"),
    ],
)
def test_a_shared_name_stands_for_what_suits_the_machine_and_is_here(
    policy: Policy, platform: str, here: set[str], wanted: str
) -> None:
    chosen = Fit(policy, platform).preferred(CARDS, lambda card: card.name in here)

    assert chosen.name == wanted


def test_only_the_setting_cpu_forbids_the_npu_and_only_npu_insists_on_it() -> None:
    found = {
        policy: [(Fit(policy).allows(card), Fit(policy).insists(card)) for card in (npu("rk3588"), CPU)]
        for policy in get_args(Policy)
    }

    assert found == {
        "auto": [(True, False), (True, False)],
        "npu": [(True, True), (True, False)],
        "cpu": [(False, False), (True, False)],
    }
    assert on_npu(npu("rk3588"))
    assert not on_npu(CPU)


@pytest.mark.parametrize(
    ("compatible", "npus", "wanted"),
    [
        (["radxa,rock-5b", "rockchip,rk3588"], [], "rk3588"),
        (["xunlong,orangepi-5", "rockchip,rk3588s"], [], "rk3588"),
        (["rockchip,rk3582"], [], "rk3588"),
        (["rockchip,rk3576"], ["fdab0000.npu"], "rk3576"),
        (["rockchip,rk3566"], ["fde40000.npu"], None),
        ([], ["fdab0000.npu"], "rk3588"),
        ([], ["27700000.npu"], "rk3576"),
        ([], [], None),
    ],
)
def test_the_chip_is_told_by_the_device_tree_or_by_the_npus_address(
    compatible: list[str], npus: list[str], wanted: str | None
) -> None:
    assert platform_of(compatible, npus) == wanted


def test_recorded_boards_are_recognised() -> None:
    found = {board.name: this_board(board) for board in sorted(BOARDS.iterdir())}

    assert {name: platform for name, platform in found.items() if name.startswith(("rk3588", "rk3576"))} == {
        name: "rk3576" if "3576" in name else "rk3588" for name in found if name.startswith(("rk3588", "rk3576"))
    }
    assert {platform for name, platform in found.items() if "3566" in name or "x86" in name or "pc" in name} == {None}
