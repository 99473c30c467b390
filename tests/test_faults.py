"""Every test that the fault table names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[^`]+)`", TABLE)


def test_every_row_names_a_test_that_is_there():
    rows = [row for row in TABLE.splitlines() if row.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| fault |")]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`tests/\S+\.py::test_\w+`", row)] == []
    for name in NAMED:
        file, _, test = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
