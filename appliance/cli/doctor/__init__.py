"""What is right and wrong with this machine for the appliance, and what to type to put it right.

`ok`: fine. `warn`: it works, but slower, less safely or for less long than it could, or nobody can tell. `fail`: what
the settings ask for does not work. So an NPU that cannot be used is a warning as long as the CPU may stand in
(`engine = "auto"`), and a failure with `engine = "npu"`.

What is known of boards is from Rockchip's rknn-llm (manual, scripts and headers of 1.1.0 to 1.3.0) and the source of
its kernel driver 0.9.8; a source of its own is named where it is used.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from appliance.cli.doctor import models, npu, place
from appliance.cli.doctor.subject import Check, Status, Subject, printable, tripped
from appliance.cli.machine import Machine
from appliance.settings import Settings

__all__ = ["CHECKS", "Check", "Status", "examine", "verdict"]

_WORST_FIRST: Final[tuple[Status, ...]] = ("fail", "warn", "ok")

CHECKS: Final[Mapping[str, Callable[[Subject], Iterator[Check]]]] = {
    "board": npu.board,
    "npu": npu.checks,
    "container": npu.container,
    "models": models.checks,
    "cpu": place.cpu,
    "memory": place.memory,
    "open-files": place.open_files,
    "sqlite": place.sqlite,
    "disk": place.disk,
    "clock": place.clock,
}


def examine(machine: Machine, settings: Settings) -> list[Check]:
    """Every check, in order. A check that trips over what it meets is a warning of its name; nothing is raised."""
    subject = Subject(machine, settings)
    done: list[Check] = []
    for name, look in CHECKS.items():
        try:
            done += [printable(check) for check in look(subject)]
        except Exception as error:  # noqa: BLE001  # whatever is on this machine, the other checks are still worth having
            done.append(tripped(name, error))
    return done


def verdict(checks: list[Check]) -> Status:
    """The worst of all."""
    found = {check.status for check in checks}
    return next((status for status in _WORST_FIRST if status in found), "ok")
