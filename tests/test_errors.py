"""Errors: what they are, what they say, and that they survive the way back from a worker."""

import copy
import pickle

import pytest

from ngfftile import errors
from ngfftile.errors import NgfftileError, OptionError

KINDS = {
    "OptionError": (ValueError, 2),
    "MissingError": (FileNotFoundError, 2),
    "ExistsError": (FileExistsError, 2),
    "ResolutionError": (LookupError, 2),
    "ClusterError": (ConnectionError, 2),
    "SourceError": (ValueError, 1),
    "StoreError": (OSError, 1),
}
FIELDS = [
    ("chunk is 100", "plan", "Use a power of two."),
    ("x", "", ""),
    ("x", "y", ""),
    ("x", "", "z"),
    ("", "", ""),
    ("Ω: {not} %s\n", "s3://ä/b", "—"),
]


def every_kind():
    found, waiting = [], [NgfftileError]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_the_table_names_every_kind():
    assert {kind.__name__ for kind in every_kind()} == {"NgfftileError", *KINDS}
    assert NgfftileError.exit_code == 1


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_caught_as_the_builtin_it_is(name):
    kind, (builtin, code) = getattr(errors, name), KINDS[name]
    error = kind("what", "where", "mend")
    assert isinstance(error, builtin)
    assert isinstance(error, NgfftileError)
    assert error.exit_code == code
    assert kind.__doc__
    with pytest.raises(builtin, match=r"where: what\. mend"):
        raise error


@pytest.mark.parametrize("fields", FIELDS, ids=range(len(FIELDS)))
@pytest.mark.parametrize("kind", every_kind())
def test_pickling_and_copying_keep_everything(kind, fields):
    error = kind(*fields)
    again = [pickle.loads(pickle.dumps(error, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in [*again, copy.copy(error), copy.deepcopy(error)]:
        assert type(other) is kind
        assert (other.what, other.where, other.mend) == fields
        assert str(other) == str(error)
        assert other.args == error.args
        assert other.exit_code == error.exit_code


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("chunk is 100", "plan", "Use 256."), "plan: chunk is 100. Use 256."),
        (("chunk is 100", "plan"), "plan: chunk is 100"),
        (("chunk is 100", "", "Use 256."), "chunk is 100. Use 256."),
        (("chunk is 100.", "plan", "Use 256."), "plan: chunk is 100. Use 256."),
        (("chunk is 100",), "chunk is 100"),
    ],
)
@pytest.mark.parametrize("kind", every_kind())
def test_the_message_says_where_what_and_how_to_mend(kind, fields, text):
    assert str(kind(*fields)) == text


def test_fields_may_be_given_by_name():
    error = OptionError("w", mend="m", where="p")
    assert (error.what, error.where, error.mend) == ("w", "p", "m")


@pytest.mark.parametrize("kind", every_kind())
def test_the_cause_is_kept(kind):
    cause = KeyError("deep")

    def fail():
        try:
            raise cause
        except KeyError as error:
            raise kind("what") from error

    with pytest.raises(kind) as caught:
        fail()
    assert caught.value.__cause__ is cause
