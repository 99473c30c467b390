"""The command segjax as a user starts it: found from anywhere, quick, kind to slips."""

import subprocess
import sys
from pathlib import Path

import pytest

import segjax
from segjax import __main__ as entry


def start(*arguments, cwd=None):
    command = [sys.executable, "-m", "segjax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_a_clone_in_the_working_directory_shadows_nothing(tmp_path):
    """A folder segjax without __init__.py, as a clone is, must lose to the installed package."""
    (tmp_path / "segjax").mkdir()
    ran = start("--version", cwd=tmp_path)
    assert ran.stdout == f"segjax {segjax.__version__}\n", ran.stderr


def test_the_command_is_installed():
    script = Path(sys.executable).with_name("segjax")
    told = subprocess.check_output([script, "--version"], text=True)
    assert told == f"segjax {segjax.__version__}\n"


def test_models_needs_no_jax():
    code = (
        "import sys; sys.argv = ['segjax', 'models']; from segjax.__main__ import main; main(); "
        "print(*{'jax', 'flax', 'grain', 'orbax'} & set(sys.modules))"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "134,362,751" in told and told.splitlines()[-1] == ""


@pytest.mark.parametrize(
    "word, told",
    [
        ("evalute", "'evalute' is no verb. Did you mean 'evaluate'?"),
        ("show-augmnt", "Did you mean 'show-augment'?"),
        (
            "zzz",
            "There are: audit, evaluate, export, models, predict, prepare, report, serve, train",
        ),
    ],
)
def test_a_mistyped_verb_is_answered(word, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["segjax", word])
    with pytest.raises(SystemExit) as stopped:
        entry.main()
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_help_lists_every_verb_and_completion_knows_them(monkeypatch, capsys):
    for option in (["--help"], ["--tyro-print-completion", "bash"]):
        monkeypatch.setattr(sys, "argv", ["segjax", *option])
        with pytest.raises(SystemExit) as stopped:
            entry.main()
        told = capsys.readouterr().out
        assert not stopped.value.code
        verbs = (*entry._VERBS, "show-augment")
        assert [verb for verb in verbs if verb not in told] == []


def test_a_recipe_that_is_missing(monkeypatch, capsys):
    for verb in ("audit", "show-augment", "train"):
        monkeypatch.setattr(sys, "argv", ["segjax", verb, "none.py"])
        with pytest.raises(SystemExit):
            entry.main()
        assert "none.py: no such file. Name the script of a recipe." in capsys.readouterr().err


def test_the_compilation_cache_of_a_program(tmp_path):
    """One call, and a second process takes from disk what the first has compiled."""
    code = (
        "import jax, segjax; segjax.use_compilation_cache(); "
        "print(jax.jit(lambda x: x * 3 + 1)(2)); print(jax.config.jax_compilation_cache_dir)"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert told[0] == "7" and Path(told[1]).parts[-2:] == ("segjax", "xla")
    assert list(Path(told[1]).iterdir())
