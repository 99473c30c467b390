"""The README's library example does what it says."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_library_example_runs(capsys):
    (example,) = re.findall(r"```python\n(from functools.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 25
    exec(compile(example, README.name, "exec"), {})
    (score,) = re.findall(r"mIoU (0\.\d+)", capsys.readouterr().out)
    assert 0.1 < float(score) < 1  # 0.1: background alone
