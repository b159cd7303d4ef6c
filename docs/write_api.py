"""Writes the API section of the model page from the code: `python -m docs.write_api`. A test holds the page against it."""

import ast
import functools
import inspect
import re
import sys
import textwrap
from pathlib import Path

import modeling_rats

PAGE = Path(__file__).resolve().parent / "rats.md"
MARK = "<!-- Written by `python -m docs.write_api`, which reads the code. -->\n"
METHODS = re.compile(
    r"forward|from_backbone|__call__|post_process_\w+|validate_sizes|with_model|localize|search|name_parts|nearest|rename|drop|merge"
)


def api():
    """The API section of the page, from the code."""
    return "\n\n".join(api_of(name) for name in modeling_rats.__all__)


def api_of(name):
    value = getattr(modeling_rats, name)
    if isinstance(value, str):
        return f"### `{name}`\n\nA string."
    node = definition(value)
    if isinstance(node, ast.FunctionDef):
        return f"### {name}\n\n" + described(node)
    parts = [f"### {name}", fenced(f"class {name}({', '.join(ast.unparse(base) for base in node.bases)})".replace("()", ""))]
    parts += [paragraph(inspect.getdoc(value)), arguments(ast.get_docstring(node) or "")]
    if hasattr(value, "valid_kwargs"):  # of an image processor
        parts.append(arguments(ast.get_docstring(definition(value.valid_kwargs)) or ""))
    seen = set()
    for owner in value.__mro__:
        if owner.__module__.startswith("modeling_rats"):
            for item in definition(owner).body:
                if isinstance(item, ast.FunctionDef) and METHODS.fullmatch(item.name) and item.name not in seen:
                    seen.add(item.name)
                    parts.append(described(item))
    return "\n\n".join(part for part in parts if part)


def definition(value):
    """The syntax tree of a class or function: what was written, before any decorator."""
    tree = ast.parse(Path(inspect.getsourcefile(sys.modules[value.__module__])).read_text())
    (node,) = [node for node in tree.body if getattr(node, "name", None) == value.__name__]
    return node


def described(node):
    text = ast.get_docstring(node) or ""
    summary = "" if re.match(r"\w+ \(`", text) else paragraph(text)
    return "\n\n".join(part for part in (fenced(signature(node)), summary, arguments(text)) if part)


def signature(node):
    """As written, in one line if it fits."""
    pieces, depth = [""], 0
    for letter in ast.unparse(node.args):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += letter
    pieces = [re.sub(r"^(\w+: .*?)=", r"\1 = ", piece.strip()) for piece in pieces]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(pieces)}){returns}"
    return line if len(line) <= 120 else "\n".join([f"{node.name}(", *(f"    {piece}," for piece in pieces), f"){returns}"])


def fenced(code):
    return f"```text\n{code}\n```"


def plain(text):
    return re.sub(r"\[(`[^`]+`)\]", r"\1", " ".join(text.split()))


def paragraph(text):
    return textwrap.fill(plain(re.split(r"\n\n|\nArgs:", text.strip())[0]), 128, break_long_words=False, break_on_hyphens=False)


def arguments(text):
    """A list of the arguments, and what is returned, from a docstring of transformers' or of Google's form."""
    lines = [
        *((f"`{name}` ({kind})", body) for name, kind, body in re.findall(r"^(\w+) \((.+)\):\n((?:    .*\n?)+)", text, re.M)),
        *(
            (f"`{name}`", body)
            for block in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?)+)", text, re.M)
            for name, body in re.findall(r"^    (\w+): (.*\n?(?:     .*\n?)*)", block, re.M)
        ),
        *(("Returns", body) for body in re.findall(r"^Returns:\n((?:    .*\n?)+)", text, re.M)),
    ]
    fill = functools.partial(textwrap.fill, width=128, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill(f"- {name}: {plain(body)}") for name, body in lines)


def written_api():
    """The API section as it stands on the page."""
    return PAGE.read_text().partition(MARK)[2].strip()


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + api() + "\n")
