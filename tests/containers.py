"""Images built and run by buildah, over a base made by debootstrap: no engine, no registry."""

import json
import os
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import NOTHING, Env, clean_environment

# The suites of Debian, by the PostgreSQL that they carry: from there its client is installed, and
# of that version a server has to be here.
SUITES = {15: "bookworm", 17: "trixie"}
PACKAGES = ("ca-certificates", "python3", "python3-pip")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def missing() -> str:
    """Return why no image can be built here; nothing where it can."""
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's package {program})"
    return "" if os.geteuid() == 0 else "debootstrap and chroot need root"


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where buildah keeps images and containers: a folder of the test's own."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead buildah there, and let it build without an engine."""
        return {
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "STORAGE_DRIVER": "vfs",
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(self.folder),
        }

    def command(self, *arguments: str) -> list[str]:
        """Return a command of buildah."""
        return ["buildah", *arguments]

    def run(
        self, *arguments: str, expect: int = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of buildah; it has to end with the exit code `expect`."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=cwd,
            env={**clean_environment(), **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == expect, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def import_base(self, suite: str, name: str) -> None:
        """Make an image with Python, as Debian's `suite` has it, in the manner of python:slim."""
        tree = self.folder / "base"
        mirrors, proxies = _apt(suite)
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        done = subprocess.run(
            [*bootstrap, suite, str(tree), *mirrors], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # `python` and `pip` are there, and pip installs into the system's Python.
        (tree / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for file in tree.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            file.unlink()
        # Each image is a copy: what is not needed goes.
        for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(tree / folder)
            (tree / folder / "partial").mkdir(parents=True)
        for folder in ("doc", "locale", "man"):
            shutil.rmtree(tree / "usr/share" / folder)
        # What this machine needs to reach Debian's and Python's packages.
        (tree / "etc/apt/apt.conf.d/99proxies").write_text(proxies)
        if CERTIFICATES.exists():
            shutil.copyfile(CERTIFICATES, tree / CERTIFICATES.relative_to("/"))
        for path in (Path("/etc/pip.conf"), Path("/etc/xdg/pip"), Path.home() / ".config" / "pip"):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            if path.exists():
                target = tree / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(path, target)
        container = self.run("from", "scratch").stdout.strip()
        self.run("add", container, str(tree), "/")
        variables = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"}
        ours = ("PIP_", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_NATIVE_TLS")
        variables |= {name: value for name, value in os.environ.items() if name.startswith(ours)}
        if os.environ.get("SSL_CERT_FILE"):
            variables |= {"SSL_CERT_FILE": str(CERTIFICATES), "PIP_CERT": str(CERTIFICATES)}
        options = [f"--env={variable}={value}" for variable, value in variables.items()]
        self.run("config", *options, container)
        self.run("commit", "--rm", container, name)
        shutil.rmtree(tree)

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the configuration of an image, as Docker has it."""
        document = json.loads(self.run("inspect", "--type=image", image).stdout)
        config: dict[str, Any] = document["Docker"]["config"]
        return config

    @contextmanager
    def container(self, image: str) -> Iterator["Container"]:
        """Make a container of an image, for a while."""
        name = self.run("from", image).stdout.strip()
        tree = Path(self.run("mount", name).stdout.strip())
        yield Container(store=self, name=name, tree=tree, config=self.inspect(image))
        self.run("rm", name)

    def remove(self) -> None:
        """Remove everything."""
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        shutil.rmtree(self.folder)


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container, on this machine's network."""

    store: Store
    name: str
    tree: Path
    """Its root folder, as this machine sees it."""
    config: dict[str, Any]
    """The image's configuration."""

    def command(self, *command: str, env: Env = NOTHING) -> list[str]:
        """Return what runs a command in it, as the image's user."""
        options = [f"--env={variable}={value}" for variable, value in env.items()]
        return self.store.command("run", *options, self.name, "--", *command)

    def run(
        self, *command: str, env: Env = NOTHING, expect: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end."""
        return self.store.run(*self.command(*command, env=env)[1:], expect=expect)

    @contextmanager
    def running(self, *command: str, log: Path, env: Env = NOTHING) -> Iterator["Running"]:
        """Run a command in it in the background, and end what is left of it at last."""
        with log.open("w") as file:
            process = subprocess.Popen(
                self.command(*command, env=env),
                env={**clean_environment(), **self.store.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        running = Running(process=process, log=log)
        try:
            yield running
        finally:
            for pid in running.inside():
                os.kill(pid, signal.SIGKILL)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@dataclass(frozen=True, kw_only=True)
class Running:
    """A command that runs in a container."""

    process: "subprocess.Popen[bytes]"
    """buildah, which ends with the command's exit code."""
    log: Path

    def inside(self) -> list[int]:
        """Return the processes in the container: the command's own, then those that it began."""
        found, left = [], [self.process.pid]
        while left:
            pid = left.pop(0)
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes()
                # Of each thread: Go starts a process in any of them.
                threads = Path(f"/proc/{pid}/task").glob("*/children")
                children = " ".join(thread.read_text() for thread in threads)
            except OSError:  # it ended meanwhile
                continue
            left += map(int, children.split())
            if name and not name.startswith(b"buildah"):
                found.append(pid)
        return found


def storage(folder: Path) -> Store:
    """Return an empty store in a folder."""
    (folder / "storage.conf").write_text(
        textwrap.dedent(f"""\
            [storage]
            driver = "vfs"
            graphroot = "{folder}/graph"
            runroot = "{folder}/run"
            """)
    )
    return Store(folder=folder)


def _apt(suite: str) -> tuple[list[str], str]:
    """Return the mirror of the suite that this machine uses, if any, and how it reaches it."""
    if shutil.which("apt-get") is None:
        return [], ""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format=$(REPO_URI)", f"Codename: {suite}"],
        capture_output=True,
        text=True,
        check=False,
    )
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    settings = [
        line
        for line in dumped.stdout.splitlines()
        if line.startswith(("Acquire::http", "Acquire::https", "Acquire::Retries"))
    ]
    return listed.stdout.split()[:1], "\n".join([*settings, ""])
