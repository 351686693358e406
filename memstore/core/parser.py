"""The text form of expressions: ``"2*15 - 0.5*'routine' & 88>0.3 & !7"``.

Grammar::

    expression := clause ("&" clause)*
    clause     := condition | sum
    condition  := "!" neuron | neuron (">" | ">=" | "<" | "<=") number
    sum        := ("+" | "-")? term (("+" | "-") term)*
    term       := (number "*")? neuron
    neuron     := 15 | N15 | n15 | word | 'quoted name' | "quoted name"
"""

import re
from dataclasses import dataclass

from memstore.core.expression import Condition, Expression, NeuronRef, Operator
from memstore.errors import InvalidExpression

#: Whatever it is, such a text is read in a quarter of a second.
MAX_LENGTH = 100_000

TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<name>[^\W\d]\w*)
    | (?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<symbol>>=|<=|[-+*&!<>\u2212\u2013\u00d7])
    )""",
    re.VERBOSE | re.DOTALL,
)
#: What word processors put in place of minus and times.
TYPOGRAPHIC = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*"})


@dataclass(frozen=True)
class Token:
    """A word of the text: its kind, its characters and where it begins."""

    kind: str
    text: str
    position: int


def tokenize(source: str) -> list[Token]:
    """Return the tokens of ``source`` and a closing one of kind "end"."""
    tokens: list[Token] = []
    position, end = 0, len(source.rstrip())
    while position < end:
        match = TOKEN.match(source, position)
        if match is None:
            position += len(source[position:]) - len(source[position:].lstrip())
            raise InvalidExpression("not part of an expression", source, position)
        kind = match.lastgroup or ""
        text = match[kind].translate(TYPOGRAPHIC) if kind == "symbol" else match[kind]
        tokens.append(Token(kind, text, match.start(kind)))
        position = match.end()
    return [*tokens, Token("end", "", end)]


class _Parser:
    """Recursive descent over the tokens; one method a rule of the grammar."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = tokenize(source)
        self.at = 0
        self.terms: list[tuple[NeuronRef, float]] = []
        self.conditions: list[Condition] = []

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def advance(self) -> Token:
        token = self.token
        self.at += 1
        return token

    def take(self, *symbols: str) -> str | None:
        """Consume one of the symbols if it is next."""
        if self.token.kind == "symbol" and self.token.text in symbols:
            return self.advance().text
        return None

    def fail(self, expected: str, token: Token | None = None) -> InvalidExpression:
        return InvalidExpression(
            f"expected {expected}", self.source, (token or self.token).position
        )

    def expression(self) -> Expression:
        self.clause()
        while self.take("&"):
            self.clause()
        if self.token.kind != "end":
            raise self.fail("'+', '-' or '&' between neurons")
        return Expression(tuple(self.terms), tuple(self.conditions))

    def clause(self) -> None:
        if self.take("!"):
            self.conditions.append(Condition(self.neuron(), "<=", 0.0))
        elif self.comparison_follows():
            neuron = self.neuron()
            op: Operator = self.advance().text  # type: ignore[assignment]  # comparison_follows saw one
            self.conditions.append(Condition(neuron, op, self.number()))
        else:
            self.sum()

    def comparison_follows(self) -> bool:
        following = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
        return self.token.kind != "symbol" and following.text in (">", ">=", "<", "<=")

    def sum(self) -> None:
        sign = self.take("+", "-")
        self.terms.append(self.term(sign))
        while sign := self.take("+", "-"):
            self.terms.append(self.term(sign))

    def term(self, sign: str | None) -> tuple[NeuronRef, float]:
        weight = 1.0
        following = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
        if self.token.kind == "number" and following.text == "*":
            weight = self.number()
            self.advance()
        return self.neuron(), -weight if sign == "-" else weight

    def number(self) -> float:
        sign = -1.0 if self.take("-") else 1.0
        if self.token.kind != "number":
            raise self.fail("a number")
        return sign * float(self.advance().text)

    def neuron(self) -> NeuronRef:
        token = self.token
        if token.kind == "quoted" and len(token.text) > 2:
            self.advance()
            return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        if token.kind == "name":
            self.advance()
            return (
                int(token.text[1:]) if re.fullmatch(r"[Nn][0-9]{1,9}", token.text) else token.text
            )
        if token.kind == "number" and re.fullmatch(r"[0-9]{1,9}", token.text):
            self.advance()
            return int(token.text)
        raise self.fail("a neuron (15, grief or 'a quoted name')")


def parse(source: str) -> Expression:
    """Return the expression that ``source`` spells.

    Raises ``InvalidExpression`` with the position of the first character that does not fit.
    """
    if len(source) > MAX_LENGTH:
        raise InvalidExpression(f"longer than {MAX_LENGTH:,} characters: ask with fewer terms")
    if not source.strip():
        raise InvalidExpression("an empty expression asks nothing: name at least one neuron")
    return _Parser(source).expression()
