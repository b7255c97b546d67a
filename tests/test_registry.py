"""Names that stand for functions."""

import math
import os.path

import pytest

from ngfftile.errors import OptionError
from ngfftile.registry import resolve

KNOWN = {"sqrt": "math:sqrt", "join": "os.path:join", "broken": "math:no_such", "gone": "no_such_module:f"}


def test_a_built_in_name_gives_its_function():
    assert resolve("sqrt", KNOWN, "filter") is math.sqrt
    assert resolve("join", KNOWN, "filter") is os.path.join


def test_a_dotted_name_gives_any_function():
    assert resolve("math:floor", KNOWN, "filter") is math.floor
    assert resolve("os.path:basename", {}, "filter") is os.path.basename


def test_a_class_may_be_called_too():
    assert resolve("fractions:Fraction", KNOWN, "filter")(1, 2) == 0.5


def test_a_function_of_the_users_own_module_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_filters_of_this_test.py").write_text("def pink(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("my_filters_of_this_test:pink", KNOWN, "filter")(2) == 3


def test_a_built_in_name_wins_over_a_module_of_the_same_name():
    assert resolve("math:floor", {"math:floor": "math:ceil"}, "filter") is math.ceil


@pytest.mark.parametrize("name", ["otsuu", "math", "math.sqrt", "", "sqrt:", "SQRT"])
def test_an_unknown_name_is_told_with_the_known_ones(name):
    with pytest.raises(OptionError) as caught:
        resolve(name, KNOWN, "filter")
    assert f"filter {name!r}" in caught.value.what
    for known in KNOWN:
        assert known in caught.value.mend
    assert "package.module:function" in caught.value.mend


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such", "os.no_such:f", "broken", "gone", "math:"])
def test_what_cannot_be_imported_is_told_with_its_cause(name):
    with pytest.raises(OptionError) as caught:
        resolve(name, KNOWN, "reader")
    assert f"reader {name!r}" in caught.value.what
    assert caught.value.mend
    if not name.endswith(":"):
        assert isinstance(caught.value.__cause__, ImportError | AttributeError)


@pytest.mark.parametrize("name", [":sqrt", ".math:sqrt", "..:f"])
def test_a_name_without_a_whole_module_is_an_option_error_too(name):
    with pytest.raises(OptionError):
        resolve(name, KNOWN, "filter")


@pytest.mark.parametrize("name", ["math:pi", "sys:path"])
def test_what_cannot_be_called_is_refused(name):
    with pytest.raises(OptionError) as caught:
        resolve(name, KNOWN, "filter")
    assert "filter" in caught.value.what
    assert name in caught.value.what
