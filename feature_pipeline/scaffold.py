"""A new feature as files: its declaration, its expression, its migration, a test to fill in.

Works on the source tree that it is part of. All texts are made before the first is written; what a
feature is stands in `features/declarations.py`, what the command asks in `cli/features.py`.
"""

from __future__ import annotations

import ast
import keyword
import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from feature_pipeline.errors import FeatureError
from feature_pipeline.features import expressions as ex
from feature_pipeline.features.catalogue import DECLARED, TABLES
from feature_pipeline.features.declarations import (
    ACTIONS,
    BARS,
    FEATURES_ASSET,
    INDICATORS_ASSET,
    INSIDERS,
    SCORES,
)
from feature_pipeline.features.prepared import PREPARED, Reading, reading
from feature_pipeline.schemas import TIMEFRAMES
from feature_pipeline.timeframes import stem

ROOT = Path(__file__).parents[1]
ASSETS = (INDICATORS_ASSET, FEATURES_ASSET)

_TUPLES = {INDICATORS_ASSET: "INDICATORS", FEATURES_ASSET: "FEATURES"}
# In `expressions`, what follows the expressions of an asset.
_NEXT_SECTION = {INDICATORS_ASSET: "# -- features -", FEATURES_ASSET: "# -- state vector -"}
_CONSTANTS = {
    BARS: "BARS",
    ACTIONS: "ACTIONS",
    INDICATORS_ASSET: "INDICATORS_ASSET",
    SCORES: "SCORES",
    INSIDERS: "INSIDERS",
}
_SHARED_INPUTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "_CLOSES": {BARS: ("close",), ACTIONS: ("symbol", "kind", "value")},
    "_RANGES": {BARS: ("high", "low", "close"), ACTIONS: ("symbol", "kind", "value")},
}

_LONGEST_NAME = 63
"""PostgreSQL cuts longer ones."""
_WIDTH = 100

_SQL_WORDS = """
    all analyse analyze and any array as asc asymmetric both case cast check collate column
    constraint create current_catalog current_date current_role current_time current_timestamp
    current_user default deferrable desc distinct do else end except false fetch for foreign from
    grant group having in initially intersect into lateral leading limit localtime localtimestamp
    not null offset on only or order placing primary references returning select session_user
    some symmetric system_user table then to trailing true union unique user using variadic when
    where window with
"""
_RESERVED = frozenset(_SQL_WORDS.split())
"""Fully reserved in PostgreSQL: a column of that name would have to be quoted everywhere."""

_GRID = frozenset(
    {"group", "usable", "run", "since_gap", "split_factor", "dividend_factor", "row"}
    | {"availability_basis", "computed_at", "run_id"}
)
"""Columns that features are evaluated beside; one of that name would replace it."""


@dataclass(frozen=True)
class Request:
    """A feature that does not exist yet.

    Args:
        name: of feature and column.
        asset: whose column it becomes: indicators_1d or features_1d.
        unit, category, description: as in its declaration.
        lookback_bars, lookback_days: as in its declaration.
        expression: a call of a function of `expressions`, as `ex.sma(30)`; empty - a function of
            the feature's own name is written, to be edited.
    """

    name: str
    asset: str
    unit: str
    category: str
    description: str
    lookback_bars: int = 0
    lookback_days: int = 0
    expression: str = ""


@dataclass(frozen=True)
class Files:
    """What a new feature adds: path -> the whole new text, relative to the source tree."""

    texts: Mapping[Path, str]
    declaration: Path
    expression: Path | None
    migration: Path
    test: Path

    def write(self, root: Path = ROOT) -> None:
        """Write all of them.

        Raises:
            FeatureError: one of them cannot be written.
        """
        try:
            for path, text in self.texts.items():
                (root / path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise FeatureError(f"cannot write {error.filename}: {error.strerror}") from None


def draft(request: Request, root: Path = ROOT) -> Files:
    """The files of a new feature. Nothing is written.

    Raises:
        FeatureError: the feature cannot be declared like that, or this is no source tree.
    """
    _check(request)
    _check_tree(root)
    declarations = Path("feature_pipeline/features/declarations.py")
    expressions = Path("feature_pipeline/features/expressions.py")
    test = Path(f"feature_pipeline_tests/features/test_feature_{request.name}.py")
    migration = _migration_path(request, root)
    for path in (test, migration):
        if (root / path).exists():
            raise FeatureError(f"{path} is already there; remove it, or choose another name")
    texts: dict[Path, str] = {}
    if request.expression:
        source, part, expression = _parsed(request.expression)
    else:
        if hasattr(ex, request.name):
            raise FeatureError(
                f"there is a function {request.name} in {expressions}; use it with "
                f'--expression "ex.{request.name}()", or choose another name'
            )
        expression, part, source = _skeleton(request), "", f"ex.{request.name}"
        texts[expressions] = _with_function(root / expressions, request)
    read = reading(request.asset, expression)
    texts[declarations] = _with_declaration(root / declarations, request, source, part, read)
    texts[migration] = _migration(request, root)
    texts[test] = _test(request)
    return Files(texts, declarations, None if request.expression else expressions, migration, test)


# -- what is refused ------------------------------------------------------------------------------


def _check(request: Request) -> None:
    name, asset = request.name, request.asset
    if asset not in ASSETS:
        why = (
            "the state vector is fixed"
            if asset.startswith("state_vectors")
            else "it has no features"
        )
        raise FeatureError(
            f"{asset} takes no new feature ({why}); give one of {' or '.join(ASSETS)}"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise FeatureError(
            f"{name!r} is no name for a column; use lower-case letters, digits and underscores, "
            "and begin with a letter"
        )
    if re.search(r"__v\d+$", name):
        raise FeatureError(
            f"{name!r} ends like a version; a new version of a feature is its declaration with "
            "`version` raised"
        )
    if len(name) > _LONGEST_NAME:
        raise FeatureError(
            f"{name[:20]}... has {len(name)} characters; PostgreSQL cuts names at {_LONGEST_NAME}"
        )
    if keyword.iskeyword(name) or name in _RESERVED:
        raise FeatureError(f"{name!r} is a reserved word; choose another name")
    for of, features in DECLARED.items():
        if any(name in (feature.name, feature.column) for feature in features):
            raise FeatureError(
                f"{of} has a feature {name!r} already; to change it, edit its declaration and "
                "raise `version`"
            )
    if name in TABLES[asset].names or name in PREPARED[asset] or name in _GRID:
        raise FeatureError(f"{name!r} is the name of a column that {asset} is computed from")
    for what in ("unit", "category", "description"):
        if not getattr(request, what).strip() or not getattr(request, what).isprintable():
            raise FeatureError(f"give --{what}: one line that says it")
    if not request.description.strip().endswith("."):
        raise FeatureError("--description is one sentence and ends with a full stop")
    if min(request.lookback_bars, request.lookback_days) < 0:
        raise FeatureError("a lookback cannot be negative: features do not look ahead")


def _check_tree(root: Path) -> None:
    wanted = [
        root / "feature_pipeline/features/declarations.py",
        root / "feature_pipeline/features/expressions.py",
        root / "feature_pipeline_tests/features",
        root / "sql",
    ]
    absent = [path for path in wanted if not path.exists()]
    locked = [path for path in wanted if path not in absent and not os.access(path, os.W_OK)]
    if absent or locked:
        problem = f"{(absent or locked)[0]} {'is not there' if absent else 'cannot be written'}"
        raise FeatureError(
            f"{problem}; a feature is source code: run this in a checkout that is installed with "
            "`pip install -e .`"
        )


def _parsed(text: str) -> tuple[str, str, pl.Expr]:
    """The source of a declaration's `expression`, its `part`, and the expression itself."""
    refused = FeatureError(
        f"--expression {text!r} is no call of a function of features/expressions.py; "
        'write it as "ex.sma(30)", "ex.rsi()" or "ex.macd().macdhist"'
    )
    try:
        tree: ast.expr = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise refused from None
    part = ""
    if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Call):
        part, tree = tree.attr, tree.value
    args: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(tree, ast.Call):
        try:
            args = [ast.literal_eval(arg) for arg in tree.args]
            named = {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
        except ValueError:
            raise refused from None
        tree = tree.func
    if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
        name = tree.attr if tree.value.id == "ex" else ""
    else:
        name = tree.id if isinstance(tree, ast.Name) else ""
    function = getattr(ex, name, None)
    if not callable(function) or getattr(function, "__module__", "") != ex.__name__:
        raise refused
    try:
        expression = function(*args, **named)
    except Exception as error:
        raise FeatureError(f"--expression {text!r}: {error}") from None
    if not isinstance(expression, pl.Expr):
        raise refused
    if not args and not named:
        return f"ex.{name}", part, expression
    words = [*map(_literal, args), *(f"{key}={_literal(v)}" for key, v in named.items())]
    return f"partial(ex.{name}, {', '.join(words)})", part, expression


def _literal(value: Any) -> str:
    """As the formatter writes it: in double quotes, unless that takes more backslashes."""
    if not isinstance(value, str):
        return repr(value)
    quote = "'" if value.count('"') > value.count("'") else '"'
    escaped = value.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


# -- texts ----------------------------------------------------------------------------------------


def _skeleton(request: Request) -> pl.Expr:
    """What a new function returns before it is edited: something real, of the right reach."""
    expression: pl.Expr = eval(_skeleton_source(request), {"pl": pl})  # noqa: S307  # our own text
    return expression


def _skeleton_source(request: Request) -> str:
    if request.asset == INDICATORS_ASSET:
        return 'pl.col("close")'
    if request.lookback_bars:
        past = f'pl.col("total_close").shift({request.lookback_bars})'
        return f'pl.col("total_close") / {past} - 1'
    return 'pl.col("close")'


def _with_function(path: Path, request: Request) -> str:
    """`expressions.py` with a function of the feature's name at the end of its section."""
    text = path.read_text(encoding="utf-8")
    function = (
        f"def {request.name}() -> pl.Expr:\n"
        f"{_docstring(request.description)}\n"
        f"    return {_skeleton_source(request)}\n"
    )
    at = text.find(f"\n{_NEXT_SECTION[request.asset]}")
    if at < 0:
        return f"{text.rstrip()}\n\n\n{function}"
    return f"{text[:at].rstrip()}\n\n\n{function}\n{text[at:]}"


def _docstring(sentence: str) -> str:
    sentence = sentence.strip().replace("\\", "\\\\").replace('"""', "'''")
    one = f'    """{sentence}"""'
    if len(one) <= _WIDTH:
        return one
    lines = textwrap.wrap(sentence, _WIDTH - 4)
    return "\n".join([f'    """{lines[0]}', *(f"    {line}" for line in lines[1:]), '    """'])


def _with_declaration(path: Path, request: Request, source: str, part: str, read: Reading) -> str:
    """`declarations.py` with the declaration at the end of its asset's features."""
    text = path.read_text(encoding="utf-8")
    name = _TUPLES[request.asset]
    for statement in ast.parse(text).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == name:
            end = statement.end_lineno
            break
    else:
        raise FeatureError(f"{path} assigns no {name}: add the declaration by hand")
    assert end is not None
    lines = text.splitlines(keepends=True)
    lines.insert(end - 1, _declaration(request, source, part, read))
    changed = "".join(lines)
    ast.parse(changed)
    return changed


def _declaration(request: Request, source: str, part: str, read: Reading) -> str:
    price = request.asset == INDICATORS_ASSET and request.unit == "price"
    fields = {
        "name": _literal(request.name),
        "description": _quoted(request.description.strip(), 8),
        "unit": _quoted(request.unit.strip(), 8),
        "category": _quoted(request.category.strip(), 8),
        "inputs": _inputs_source(read.inputs),
        "expression": source,
        "part": _literal(part) if part else "",
        "lookback_bars": str(request.lookback_bars or ""),
        "lookback_days": str(request.lookback_days or ""),
        "needs": _tuple_source(read.needs) if read.needs else "",
        "universe": "True" if read.universe else "",
        "basis": '"own day"' if price else "",
    }
    body = "".join(f"        {name}={value},\n" for name, value in fields.items() if value)
    return f"    Feature(\n{body}    ),\n"


def _quoted(text: str, indent: int) -> str:
    """A string, over several lines where one is too short."""
    one = _literal(text)
    if indent + len("description=,") + len(one) <= _WIDTH:
        return one
    inner = " " * (indent + 4)
    wrapped = textwrap.wrap(text, _WIDTH - len(inner) - 4, drop_whitespace=False)
    parts = "\n".join(inner + _literal(line) for line in wrapped)
    return f"(\n{parts}\n{' ' * indent})"


def _inputs_source(inputs: Mapping[str, tuple[str, ...]]) -> str:
    for name, shared in _SHARED_INPUTS.items():
        if {a: set(c) for a, c in inputs.items()} == {a: set(c) for a, c in shared.items()}:
            return name
    entries = [f"{_CONSTANTS[a]}: {_tuple_source(columns)}" for a, columns in inputs.items()]
    one = f"{{{', '.join(entries)}}}"
    if len(one) + len("        inputs=,") <= _WIDTH:
        return one
    return "{\n" + "".join(f"            {entry},\n" for entry in entries) + "        }"


def _tuple_source(names: tuple[str, ...]) -> str:
    return f"({', '.join(map(_literal, names))}{',' * (len(names) == 1)})"


def _migration_path(request: Request, root: Path) -> Path:
    last = max(int(name[:4]) for name in _migrations(root))
    return Path(f"sql/{last + 1:04}_feature_{request.name}.sql")


def _migrations(root: Path) -> list[str]:
    found = sorted(path.stem for path in (root / "sql").glob("[0-9][0-9][0-9][0-9]_*.sql"))
    if not found:
        raise FeatureError(f"there are no migrations in {root / 'sql'}")
    return found


def _migration(request: Request, root: Path) -> str:
    view = stem(request.asset)
    before = _migrations(root)
    views = [name for name in before if name.endswith("_timeframes")]
    depends = " ".join(dict.fromkeys([*views[:1], before[-1]]))
    words = textwrap.fill(
        request.description.strip(), _WIDTH, initial_indent="-- ", subsequent_indent="-- "
    )
    columns = "".join(
        f"ALTER TABLE {view}_{timeframe} ADD COLUMN {request.name} double precision;\n"
        for timeframe in reversed(TIMEFRAMES)
    )
    return (
        f"-- depends: {depends}\n{words}\n\n{columns}\n"
        "-- A view has the columns that its tables had when it was made.\n"
        f"DO $$ BEGIN PERFORM unite_timeframes('{view}'); END $$;\n"
    )


_TEST = '''"""{name}: {sentence}"""

from __future__ import annotations

import pytest

from feature_pipeline_tests.features.market import by_hand, chain

CLOSES = [100.0 + day for day in range({bars})]
"""One instrument without splits and dividends; change them to what says most about the feature."""

LOOKBACK = {lookback}


def test_{name}_is_what_a_hand_computes():
    values = chain(by_hand(CLOSES)).{table}["{name}"]
    expected = None
    assert expected is not None, (
        "compute {name} at the last of CLOSES by hand, without its expression, and write "
        "the number into `expected`"
    )
    assert values[-1] == pytest.approx(expected, rel=1e-9)


def test_{name}_is_missing_until_its_lookback_is_there():
    values = chain(by_hand(CLOSES)).{table}["{name}"]
    assert values.head(LOOKBACK).null_count() == LOOKBACK
'''


def _test(request: Request) -> str:
    sentence = request.description.strip().replace("\\", "\\\\").replace('"', "'")
    head = f'"""{request.name}: {sentence}"""'
    if len(head) > _WIDTH:
        sentence = textwrap.shorten(sentence, _WIDTH - len(request.name) - 8, placeholder=" ...")
    return _TEST.format(
        name=request.name,
        sentence=sentence,
        bars=request.lookback_bars + 30,
        lookback=request.lookback_bars,
        table=request.asset.rpartition("_")[0],
    )
