"""Every room's README has the same four headings and names each of its settings with its default."""

import importlib
import re
from pathlib import Path

import pytest

from luthier_common.kit.settings import RoomSettings
from luthier_stack.settings import SERVICES, StackSettings

ROOT = Path(__file__).resolve().parents[3]
HEADINGS = ["Role", "Hears", "Says", "Run it alone"]
MIB = 1024**2


def readme(folder: str) -> str:
    return (ROOT / folder / "README.md").read_text()


def own_settings(room: str) -> dict[str, object]:
    """The default of each setting that is the room's own, or that differs from what all rooms have."""
    module = importlib.import_module(f"luthier_{room.replace('-', '_')}.settings")
    [settings] = [each for each in vars(module).values() if _is_settings_of(each, module.__name__)]
    common = RoomSettings.model_fields
    fields = settings.model_fields.items()
    return {name: f.default for name, f in fields if name not in common or f.default != common[name].default}


def _is_settings_of(thing: object, module: str) -> bool:
    return isinstance(thing, type) and issubclass(thing, RoomSettings) and thing.__module__ == module


@pytest.mark.parametrize("folder", ["infra/stack", *(f"services/{room}" for room in SERVICES)])
def test_four_headings(folder: str) -> None:
    assert re.findall(r"^## (.+)$", readme(folder), re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("room", SERVICES)
def test_every_setting_and_no_other_is_listed(room: str) -> None:
    listed = dict(re.findall(r"^\| `LUTHIER_(\w+)` \| (.*?) \|", readme(f"services/{room}"), re.MULTILINE))
    assert {name.lower() for name in listed} == set(own_settings(room))
    for name, default in own_settings(room).items():
        if isinstance(default, str | int | float) and default != "":
            assert listed[name.upper()] in _written(default), name


def test_settings_of_every_room_are_listed() -> None:
    for name in RoomSettings.model_fields:
        assert f"`LUTHIER_{name.upper()}`" in readme("libs/common")


def test_settings_of_the_stack_are_listed() -> None:
    for_callers = {"echo", "announce", "start_timeout_s", "service_env", "commands"}
    for name in StackSettings.model_fields.keys() - for_callers:
        assert f"`LUTHIER_{name.upper()}`" in readme("infra/stack")


def _written(default: str | float) -> set[str]:
    """A default as it may stand in a table."""
    if isinstance(default, str | bool):
        return {f"`{str(default).lower() if isinstance(default, bool) else default}`"}
    return {f"`{default:g}`", f"`{default:.0f}`", f"{default / MIB:g} MiB", f"{default / MIB / 1024:g} GiB"}
