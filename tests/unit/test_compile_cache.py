import os
import subprocess
import sys
from pathlib import Path

PRINT = "import os, diffdpo; print(os.environ.get('NUMBA_CACHE_DIR'))"
WAIT = PRINT + "; import sys; sys.stdout.flush(); sys.stdin.read()"


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "DIFFDPO_COMPILE_CACHE")}
    return {**kept, "XDG_CACHE_HOME": str(home), **variables}


def printed(environment: dict[str, str], code: str = PRINT) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_processes_at_a_time_have_folders_of_their_own_and_one_after_the_other_the_same(
    tmp_path: Path,
) -> None:
    root = tmp_path / "diffdpo" / "numba"
    environment = clean_environment(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == str(root / "0")
        assert printed(environment) == str(root / "1")
        assert printed(environment) == str(root / "1")
        first.communicate("")
    assert printed(environment) == str(root / "0")


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", WAIT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        first.kill()
    assert printed(environment).endswith("0")


def test_a_child_has_a_folder_beside_its_parents(tmp_path: Path) -> None:
    child = "import subprocess, sys, diffdpo; "
    child += (
        f"print(subprocess.run([sys.executable, '-c', {PRINT!r}], capture_output=True, text=True).stdout)"
    )
    assert printed(clean_environment(tmp_path), child).endswith("1")


def test_the_users_own_folder_is_kept(tmp_path: Path) -> None:
    assert printed(clean_environment(tmp_path, NUMBA_CACHE_DIR="/elsewhere")) == "/elsewhere"


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = printed(clean_environment(tmp_path / "file", TMPDIR=str(temporary)))
    assert Path(folder).parent.parent == temporary


def test_without_any_folder_numba_keeps_its_own_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "import tempfile; tempfile.tempdir = " + repr(str(tmp_path / "file")) + "; " + PRINT
    assert printed(clean_environment(tmp_path / "file"), code) == "None"
