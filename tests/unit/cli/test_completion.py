"""Commands and flags are completed in the shells themselves, as far as this machine has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xgr_runtime.cli import main

# What a shell offers for a line, one a line. Bash and zsh have no way to be asked but their own functions.
ASKED = {
    "bash": """source {script}
COMP_LINE={line} COMP_POINT=${{#COMP_LINE}} COMP_TYPE=9 COMP_WORDS=($COMP_LINE)
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
_python_argcomplete xgr
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "zsh": """compdef() {{ }}
_describe() {{ print -l -- "${{completions[@]}}" }}
zstyle() {{ }}
source {script}
service=xgr words=(${{(z):-{line}}}) BUFFER={line} CURSOR=${{#BUFFER}}
_python_argcomplete
""",
    "fish": "source {script}; complete -C {line}",
}


@pytest.fixture
def xgr(tmp_path: Path) -> Path:
    """A folder for PATH with the command in it."""
    command = tmp_path / "xgr"
    program = "import sys\nfrom xgr_runtime.cli import main\nsys.exit(main())\n"
    command.write_text(f"#!{sys.executable}\n{program}")
    command.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("shell", ASKED)
def test_a_shell_offers_commands_and_flags(
    shell: str, xgr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    environ = {**os.environ, "PATH": f"{xgr}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for line, offered in [("xgr cat", "catalog"), ("xgr ask --exclude-h", "--exclude-history")]:
        asked = ASKED[shell].format(script=script, line=f"'{line}'")
        found = subprocess.run([shell, "-c", asked], env=environ, capture_output=True, text=True, timeout=60)
        words = found.stdout.replace("\\", "").split()
        assert any(word.partition(":")[0] == offered for word in words), found
