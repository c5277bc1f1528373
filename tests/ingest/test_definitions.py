import pytest

from appliance.ingest.borders import BLOCK, HEADING, Borders
from appliance.ingest.definitions import definition_borders


def names(borders: Borders) -> list[str]:
    return [heading.text for heading in borders.headings if heading.text]


def path(text: str, place: int) -> list[str]:
    """The definitions around a place, outermost first."""
    borders = definition_borders(text)
    index, found = borders.heading_at(place), []
    while index >= 0:
        if borders.headings[index].text:
            found.append(borders.headings[index].text)
        index = borders.headings[index].parent
    return found[::-1]


@pytest.mark.parametrize(
    "line",
    [
        "def f(x):",
        "async def f(x) -> int:",
        "class A:",
        "class A(B):",
        "export default class Foo extends Bar {",
        "export async function load(url) {",
        "function* walk(tree) {",
        "const add = (a, b) => {",
        "pub(crate) fn read<T>(from: T) -> Result<T> {",
        "impl Display for Otter {",
        "struct Otter {",
        "func (o *Otter) Swim(m int) error {",
        "fun main() {",
        "public static void main(String[] args) {",
        "static int compare(const void *a, const void *b) {",
        "interface Swimmer {",
        "module Zoo",
        "CREATE TABLE otters (",
        "CREATE OR REPLACE FUNCTION f(x int)",
        "macro_rules! zoo {",
        "namespace zoo {",
    ],
)
def test_a_first_line_of_a_definition_is_known(line: str) -> None:
    borders = definition_borders(f"x = 1\n\n{line}\n    body\n")

    assert names(borders) == [line.rstrip("{: ")]
    assert list(borders.kinds[HEADING]) == [7]


@pytest.mark.parametrize(
    "line",
    [
        "class of its own, it was said; and so on",
        "if (otter.swims()) {",
        "for (int i = 0; i < 3; i++) {",
        "while (true) {",
        "return call(x);",
        "swim(otter);",
        "} else if (x) {",
        "defined = 3",
        "type = 3;",
        "x" * 400 + "() {",
    ],
)
def test_a_line_that_defines_nothing_is_no_definition(line: str) -> None:
    assert names(definition_borders(f"x = 1\n{line}\n")) == []


def test_definitions_inside_others_are_lesser_borders() -> None:
    text = "class A:\n    def f(self):\n        pass\n\n    def g(self):\n        pass\n\ndef h():\n    pass\n"

    borders = definition_borders(text)

    assert list(borders.kinds[BLOCK]) == [text.index("    def f"), text.index("    def g")]
    assert list(borders.kinds[HEADING]) == [text.index("def h")]
    assert path(text, text.rindex("pass")) == ["def h()"]
    assert path(text, text.index("pass")) == ["class A", "def f(self)"]


def test_a_definition_ends_where_its_indentation_does() -> None:
    text = "int f(int x) {\n  return x;\n}\n\nint y = 3;\n"

    assert path(text, text.index("return")) == ["int f(int x)"]
    assert path(text, text.index("}")) == ["int f(int x)"]
    assert path(text, text.index("int y")) == []


def test_comments_and_decorators_go_with_the_definition_below_them() -> None:
    text = "x = 1\n\n# Why.\n@cache\ndef f():\n    pass\n\n# Not this.\n\ndef g():\n    pass\n"

    borders = definition_borders(text)

    assert list(borders.kinds[HEADING]) == [text.index("# Why"), text.index("def g")]


def test_very_deep_definitions_are_told_apart_to_a_bound() -> None:
    text = "".join(f"{' ' * depth}def f{depth}():\n" for depth in range(60))

    assert len(path(text, len(text) - 1)) <= 17
