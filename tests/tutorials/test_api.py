"""The API's page leaves out no public name, and what it shows is documented."""

import inspect
import pathlib
import re

import pytest

import vipatterns as vip

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "tutorials" / "api.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"(?m)^::: (\S+)$", PAGE)
MEMBERS = [name.strip() for names in re.findall(r"members: \[(.+)\]", PAGE) for name in names.split(",")]


def resolve(path: str):
    value = vip
    for name in path.split(".")[1:]:
        value = getattr(value, name) if hasattr(value, name) else __import__(f"vipatterns.{name}", fromlist=[name])
    return value


def test_every_public_name_is_shown():
    rooms = {"amortized", "objectives"}
    assert set(vip.__all__) - rooms - {path.removeprefix("vipatterns.") for path in SHOWN} == set()


def test_every_public_name_of_the_rooms_is_shown():
    elsewhere = {"train", "Trained"}
    assert {f"vipatterns.amortized.{name}" for name in set(vip.amortized.__all__) - elsewhere} - set(SHOWN) == set()
    assert set(vip.objectives.__all__) - set(MEMBERS) == set()


def test_nothing_is_shown_twice():
    assert len(SHOWN) == len(set(SHOWN))


@pytest.mark.parametrize("path", SHOWN)
def test_what_is_shown_exists_and_says_what_it_takes(path):
    """A function documents each of its arguments; methods of records, each that has more than itself and a key."""
    shown = resolve(path)
    assert inspect.getdoc(shown)
    functions = {path: shown} if inspect.isfunction(shown) else {}
    if inspect.ismodule(shown):
        functions = {f"{path}.{name}": getattr(shown, name) for name in MEMBERS if inspect.isfunction(getattr(shown, name, None))}
    if inspect.isclass(shown):
        functions |= {f"{path}.{name}": f for name, f in vars(shown).items() if inspect.isfunction(f) and name[0] != "_"}
    for name, function in functions.items():
        said = inspect.getdoc(function) or ""
        taken = [p for p in inspect.signature(function).parameters if p not in ("self", "rng_key")]
        if "see `vip.fit` for the arguments" in said or name.endswith(".loss"):  # of NumPyro's form, or vip.fit's
            continue
        missing = [p for p in taken if not re.search(rf"(?m)^ +(\w+, )*{p}(, \w+)*: ", said)]
        assert missing == [], name
        assert "Returns:" in said or "Yields:" in said or "-> None" in str(inspect.signature(function)), name
