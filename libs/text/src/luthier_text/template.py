"""Chat templates in a sandbox, rendered as transformers renders them, with the assistant's turns tracked.

The sandbox keeps a template from Python's internals; it does not bound what a template costs. Foreign templates
belong in a limited child process.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from luthier_text.errors import TextError
from luthier_text.messages import Message

_TURN_START = "luthier_turn_start"
_TURN_END = "luthier_turn_end"
# What a template's own code can raise while it meets data that its author did not expect.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class _Generation(Extension):
    """`{% generation %}` prints its body: turns are tracked by `_track_loops`, not by this tag."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _TemplateDict:
    """`dict` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """jinja's namespace without underscore-prefixed attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            _check_attribute(name)
        Namespace.__init__(self, attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        Namespace.__setitem__(self, name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("templates cannot store underscore-prefixed attributes")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _TemplateNamespace
    return environment


def _track_loops(tree: nodes.Template) -> None:
    """Make every loop announce its items and its end; which of the items are messages is decided while rendering."""
    counter = iter(range(1 << 30))

    def call(name: str, loop: int, names: Sequence[str], lineno: int) -> nodes.Output:
        args: list[nodes.Expr] = [nodes.Const(loop), *(nodes.Name(item, "load") for item in names)]
        output = nodes.Output([nodes.Call(nodes.Name(name, "load"), args, [], None, None)])
        output.set_lineno(lineno, override=True)
        return output

    def visit(node: nodes.Node) -> None:
        for child in node.iter_child_nodes():
            visit(child)
        for field, value in node.iter_fields():
            if not isinstance(value, list):
                continue
            tracked: list[nodes.Node] = []
            for item in value:
                tracked.append(item)
                if isinstance(item, nodes.For):
                    loop = next(counter)
                    targets = [item.target] if isinstance(item.target, nodes.Name) else item.target.find_all(nodes.Name)
                    names = [target.name for target in targets]
                    item.body.insert(0, call(_TURN_START, loop, names, item.lineno))
                    tracked.append(call(_TURN_END, loop, (), item.lineno))
            setattr(node, field, tracked)

    visit(tree)


@dataclass(frozen=True)
class Tracked:
    """A render, and for each of its pieces of text the index of the message whose turn printed it."""

    text: str
    pieces: tuple[tuple[int | None, int, int], ...]

    def turn(self, index: int) -> list[tuple[int, int]]:
        """Where the turn of a message is printed, in one piece or in several."""
        return [span for span in self._turns.get(index, []) if self.text[span[0] : span[1]].strip()]

    @cached_property
    def _turns(self) -> dict[int | None, list[tuple[int, int]]]:
        turns: dict[int | None, list[tuple[int, int]]] = {}
        for owner, start, end in self.pieces:
            spans = turns.setdefault(owner, [])
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return turns


class ChatTemplate:
    """A compiled template; safe to use from several threads."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        environment = _make_environment()
        try:
            self._plain = environment.from_string(source)
            tree = environment.parse(source)
            self.literals = _literals(tree)
            _track_loops(tree)
            tree.set_environment(environment)
            self._tracked = jinja2.Template.from_code(
                environment, environment.compile(tree), environment.make_globals(None)
            )
        except _TEMPLATE_ERRORS as error:
            raise TextError("bad_bundle", f"the chat template does not compile: {error}") from error
        self._variables = dict(variables)

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """What transformers prints for the same messages."""
        return self._render(self._plain, messages, tools, add_generation_prompt, variables)

    def prints(self, text: str, messages: list[Message], tools: list[Any] | None, add_generation_prompt: bool) -> bool:
        """Whether the template prints exactly this text for the messages."""
        try:
            return self.render(messages, tools, add_generation_prompt, {}) == text
        except TextError:
            return False

    def render_tracked(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        add_generation_prompt: bool,
        mark: str,
    ) -> Tracked:
        """The same text, with the turns in it; `mark` must be a character that is in none of the inputs."""
        indices = {id(message): index for index, message in enumerate(messages)}
        open_loops: set[int] = set()

        def start(loop: int, *items: object) -> str:
            index = next((indices[id(item)] for item in items if id(item) in indices), None)
            if index is None:
                return ""
            open_loops.add(loop)
            return f"{mark}{loop},{index}{mark}"

        def end(loop: int) -> str:
            if loop not in open_loops:
                return ""
            open_loops.discard(loop)
            return f"{mark}{loop}{mark}"

        hooks: dict[str, Callable[..., str]] = {_TURN_START: start, _TURN_END: end}
        return _read_marks(self._render(self._tracked, messages, tools, add_generation_prompt, hooks), mark)

    def _render(
        self,
        template: jinja2.Template,
        messages: list[Message],
        tools: list[Any] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        merged = {**self._variables, **variables}
        if isinstance(moment := merged.pop("strftime_now", None), str):
            merged["strftime_now"] = datetime.fromisoformat(moment).strftime
        values = {"documents": None, **merged}
        values |= {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return template.render(values)
        except _TEMPLATE_ERRORS as error:
            # A template's own words may quote the row, and messages go where no text of users may go.
            kind = "by its own rules" if type(error) is jinja2.TemplateError else type(error).__name__
            raise TextError(
                "template_refused", f"the base model's chat template refuses the messages ({kind})"
            ) from error


def _literals(tree: nodes.Template) -> str:
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(texts))


def _read_marks(marked: str, mark: str) -> Tracked:
    """Marks nest: a turn is open until its loop goes on or ends, whatever was opened inside is closed with it."""
    stack: list[tuple[int, int | None]] = []
    pieces: list[tuple[int | None, int, int]] = []
    texts: list[str] = []
    position = 0
    for number, part in enumerate(re.split(re.escape(mark), marked)):
        if number % 2 == 0:
            if part:
                pieces.append((stack[-1][1] if stack else None, position, position + len(part)))
                texts.append(part)
                position += len(part)
            continue
        loop, _, index = part.partition(",")
        depth = next((depth for depth, (open_loop, _) in enumerate(stack) if open_loop == int(loop)), None)
        if depth is not None:
            del stack[depth:]
        if index:
            stack.append((int(loop), int(index)))
    return Tracked("".join(texts), tuple(pieces))
