"""Formulas of docstrings, which are plain text for a terminal, are set as formulas on the site.

A literal such as ``sqrt(v' M v) + omega' v`` is a formula if all its words are letters, Greek
letters or functions, and something is computed. Names of arguments, shapes and code stay literals.
"""

import re

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

GREEK = (
    "alpha",
    "beta",
    "epsilon",
    "theta",
    "lambda",
    "omega",
    "phi",
    "psi",
    "pi",
    "rho",
    "sigma",
    "Phi",
)
FUNCTIONS = ("sqrt", "max", "min", "sin", "cos", "tan", "exp", "log", "det", "sinh", "cosh", "tanh")
NAMED = {"grad": r"\nabla", "sum": r"\sum", "dim": r"\dim", "eps": r"\varepsilon"}
RELATIONS = {"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "->": r"\to", "~": r"\sim"}
#: What makes a literal code, whatever its words.
CODE = re.compile(
    r"""["\[\]`#%]|//|\*\*|\.\.\.|\.T\b| \| |\b\w+=\w|[a-z]{2}_[a-z]{2}"""
    r"""|^\((?!M, omega)[\w, ]*\)$"""
)
TABLE = re.compile(r"=+( +=+)+")
LITERAL = re.compile(r"``([^`\n]+)``")


def is_formula(text: str) -> bool:
    """Return whether a literal is a formula."""
    if CODE.search(text) or text == "u v'":
        return False
    words = re.findall(r"[A-Za-z]+", text)
    known = {*GREEK, *FUNCTIONS, *NAMED}
    computed = re.search(r"[-=+*/^|<>'({]", text)
    return bool(words and computed and all(len(w) == 1 or w in known for w in words))


def latex(text: str) -> str:
    """Return a formula in LaTeX."""
    text = re.sub(r"(?<![_^\w])\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", r"\\{\1\\}", text)
    text = re.sub(r"<([^<>=]+), ([^<>]+)>", r"\\langle \1, \2 \\rangle", text)
    # A prime is a transpose where something is multiplied from the right, or with itself.
    text = re.sub(r"\b(?!x\b|phi\b|f\b|J\b|r\b)([A-Za-z]+)'(?= [A-Za-z(])", r"\1^\\top", text)
    text = re.sub(r"\b(\w+) \1'", r"\1 \1^\\top", text)
    text = re.sub(r"\)'(?!')|(?<=[A-Z])'$", lambda m: m[0][:-1] + r"^\top", text)
    text = re.sub(r"(?<=\w)\*(?=[_( ]|$|<| =)(?! \w+ \*)", "^*", text)
    text = re.sub(r" \* ", r" \\, ", text)
    text = re.sub(r"\^\(([^()]*(?:\([^()]*\))?[^()]*)\)", r"^{\1}", text)
    text = re.sub(r"_\(([^()]*)\)", r"_{\1}", text)
    text = re.sub(r"\^(-?[A-Za-z0-9]+)", lambda m: f"^{{{m[1]}}}", text)
    text = re.sub(r"([_^])\{(-?\w)\}(?![{(])", lambda m: m[0] if "-" in m[2] else m[1] + m[2], text)
    text = re.sub(r"\b([a-zA-Z])(\d+)\b", r"\1_{\2}", text)
    for plain, set_ in {
        "<=": r"\le",
        ">=": r"\ge",
        "!=": r"\ne",
        "->": r"\to",
        "~": r"\sim",
    }.items():
        text = text.replace(plain, set_ + " ")
    text = re.sub(r" \. |(?<=[A-Za-z)])\.(?=[A-Za-z])", r" \\cdot ", text)
    text = _roots(text)
    for word, set_ in NAMED.items():
        text = re.sub(rf"(?<![\\A-Za-z]){word}(?![A-Za-z])", lambda _, s=set_: s + " ", text)
    words = "|".join([*GREEK, *FUNCTIONS])
    text = re.sub(rf"(?<![\\A-Za-z])({words})(?![A-Za-z])", r"\\\1 ", text)
    text = text.replace(r"\phi ", r"\varphi ").replace(r"\epsilon ", r"\varepsilon ")
    return re.sub(r" +", " ", text).strip()


def _roots(text: str) -> str:
    """Return the text with the brackets of every root as braces."""
    while (found := re.search(r"(?<![\\A-Za-z])sqrt\(", text)) is not None:
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        text = rf"{text[: found.start()]}\sqrt{{{text[found.end() : end - 1]}}}{text[end:]}"
    return text


def set_formulas(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Replace the formulas among the literals of a docstring."""
    for i in range(len(lines) - 1, 0, -1):  # a literal that is broken becomes one line
        if lines[i - 1].count("``") % 2 and lines[i].count("``") % 2:
            lines[i - 1] += " " + lines.pop(i).lstrip()
    borders = [i for i, line in enumerate(lines) if TABLE.fullmatch(line.strip())]
    table = range(borders[0], borders[-1]) if borders else ()  # its columns have their widths
    for i, line in enumerate(lines):
        if i not in table and not line.lstrip().startswith((">>>", "...")):
            lines[i] = LITERAL.sub(
                lambda m: f":math:`{latex(m[1])}`" if is_formula(m[1]) else m[0], line
            )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Look at every docstring before numpydoc does."""
    app.connect("autodoc-process-docstring", set_formulas, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
