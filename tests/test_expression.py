"""Neuron expressions: text, algebra and dicts say the same; mistakes are pointed at."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstore import Expression, N
from memstore.core.expression import Condition
from memstore.core.parser import parse
from memstore.errors import InvalidExpression, UnknownNeuron


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("15", N[15]),
        ("+15 -5", N[15] - N[5]),
        ("15-5", N[15] - N[5]),
        ("-5", -N[5]),
        ("N15 - N5", N[15] - N[5]),
        ("+grief -routine", N["grief"] - N["routine"]),
        ("2*15 - 0.5*'first day'", 2 * N[15] - 0.5 * N["first day"]),
        ('"it\'s"', N["it's"]),
        (r"'it\'s'", N["it's"]),
        ("15 & 88>0.3", N[15] & (N[88] > 0.3)),
        ("15 & 88 <= .5 & !7", N[15] & (N[88] <= 0.5) & ~N[7]),
        ("!7", ~N[7]),
        ("88>-1", N[88] > -1),
        ("1e-2*3", 0.01 * N[3]),
        ("15 \u2212 5", N[15] - N[5]),
        ("Größe + 名前", N["Größe"] + N["名前"]),
    ],
)
def test_text_and_algebra_build_the_same_expression(text, same):
    """What is written is what would be calculated."""
    assert parse(text) == same


def test_a_dict_and_a_number_are_expressions_too():
    """``{15: 1, 5: -1}`` and 15 mean what they look like."""
    assert Expression.of({15: 1, 5: -1}) == N[15] - N[5]
    assert Expression.of(15) == N[15]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("15 % 5", 3),
        ("+", 1),
        ("15 -", 4),
        ("15 5", 3),
        ("2*", 2),
        ("88>", 3),
        ("88>x", 3),
        ("15 & & 7", 5),
        ("!", 1),
        ("''", 0),
        ("1.5", 0),
        ("15 'open", 3),
        ("99999999999", 0),
        ("2*3*4", 3),
    ],
)
def test_a_mistake_is_pointed_at(text, position):
    """The error knows the first character that does not fit."""
    with pytest.raises(InvalidExpression) as caught:
        parse(text)
    assert caught.value.position == position
    assert ">>>" in str(caught.value)


@pytest.mark.parametrize("text", ["", "   ", "1" * 2_000_000])
def test_nothing_and_far_too_much_are_refused(text):
    """An empty expression asks nothing, an endless one is no expression."""
    with pytest.raises(InvalidExpression):
        parse(text)


@pytest.mark.parametrize(
    "value",
    [None, 1.5, True, [], {}, {"": 1}, {1.5: 1}, {15: float("nan")}, {15: 1e300}, {15: "1"}],
)
def test_other_things_are_no_expression(value):
    """Each is refused with what would do instead."""
    with pytest.raises(InvalidExpression):
        Expression.of(value)


names = st.text(min_size=1, max_size=8)
refs = st.one_of(st.integers(0, 999_999_999), names)
weights = st.floats(-1e6, 1e6, allow_nan=False)
conditions = st.builds(Condition, refs, st.sampled_from([">", ">=", "<", "<="]), weights)


@given(st.lists(st.tuples(refs, weights), min_size=1), st.lists(conditions))
def test_what_is_printed_parses_back(terms, conditions):
    """``str`` and ``parse`` are inverse, whatever the names."""
    expression = Expression(tuple(terms), tuple(conditions))
    assert parse(str(expression)) == expression


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_in_words(text):
    """No input makes the parser fail in another way."""
    with contextlib.suppress(InvalidExpression):
        assert isinstance(parse(text), Expression)


def test_terms_of_one_neuron_add_up_and_zeros_go():
    """Resolving leaves each neuron once, ascending."""
    query = parse("5 + 3 - 2*3 + 7 - 7").resolve(lambda name: 0, 10)
    assert query.terms == ((3, -1.0), (5, 1.0))


@pytest.mark.parametrize("terms", [{3: 1e-101}, {3: 5e-324}, {3: 1.0, 5: -1e-300}])
def test_a_weight_next_to_nothing_is_refused(terms):
    """Scores of such terms would round away what tells memories apart."""
    with pytest.raises(InvalidExpression, match="use 0, or 1e-100 and more"):
        Expression.of(terms).resolve(lambda name: 0, 10)
    assert Expression.of({3: 1e-100}).resolve(lambda name: 0, 10).terms == ((3, 1e-100),)


@pytest.mark.parametrize("text", ["10", "3 - 10", "3 & 10>0", "!10"])
def test_a_neuron_past_the_last_is_unknown(text):
    """The error says which neurons there are."""
    with pytest.raises(UnknownNeuron, match="0 to 9"):
        parse(text).resolve(lambda name: 0, 10)
