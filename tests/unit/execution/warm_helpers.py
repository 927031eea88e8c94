"""More behaviours of the fake worker: cells that spoil what they can reach, or tell what they find.

Some kill their parent.
"""

from __future__ import annotations

from pathlib import Path

from execution_helpers import WORKER, fake_package

PARENT = """
def warm_parent():
    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\\0")
    return os.getppid() if b"--warm" in command else None

class Library:
    setting = "as imported"

def told():
    import random, tempfile, threading
    return {
        "setting": Library.setting,
        "variables": {name: value for name, value in os.environ.items() if name != "HARNESS_CELL_TOKEN"},
        "as the kernel has it": sorted(
            line.partition(b"=")[2].decode().partition(".")[2]
            for line in Path("/proc/self/environ").read_bytes().split(b"\\0") if line.startswith(b"HARNESS_CELL_TOKEN=")
        ),
        "in work": os.getcwd() == request["work"],
        "temporary": tempfile.gettempdir() == request["work"] + "/tmp",
        "threads": threading.active_count(),
        "group": os.getpgid(0) == os.getsid(0) == os.getpid(),
        "arguments": sys.argv[1:] == [str(Path(request["work"], "request.json"))],
        "input": sys.stdin.read(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "random": random.random(),
        "work holds": sorted(os.listdir(request["work"])),
    }
"""

BEHAVIOURS = """
    elif behaviour == "tells":
        (Path(request["work"]).parent / f"told-{request['cell']['seed']}").write_text(json.dumps(told()))
        finish()
    elif behaviour == "spoils":
        import random, threading
        Library.setting = "patched"
        random.seed(1)
        os.environ["LEFT_BEHIND"] = "1"
        os.environ.pop("OMP_NUM_THREADS")
        os.chdir("/")
        os.umask(0)
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (Path(request["work"]).parent / "left").write_text(str(child.pid))
        Path(os.environ["TMPDIR"], "file").write_text("left behind")
        finish()
    elif behaviour == "forks-a-daemon":
        # Never executes a program: all that says whose it is are bytes in memory that it has of its parent.
        pids = Path(request["work"]).parent / "daemon"
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                pids.with_suffix(".new").write_text(str(os.getpid()))
                pids.with_suffix(".new").rename(pids)
                time.sleep(600)
            os._exit(0)
        os.wait()
        while not pids.exists():
            time.sleep(0.01)
        finish()
    elif behaviour == "writes-home":
        Path(WARM_HOME, "cache").write_text("for the next cell")
        finish()
    elif behaviour == "kills-its-parent":
        reach("train")
        if warm_parent():
            os.kill(warm_parent(), signal.SIGKILL)
            time.sleep(600)
        finish()
    elif behaviour == "kills-its-parent-once":
        mark = Path(request["work"]).parent / "killed"
        reach("train")
        if not mark.exists():
            mark.write_text("")
            os.kill(warm_parent(), signal.SIGKILL)
            time.sleep(600)
        finish()
    elif behaviour == "says-how":
        how = Path(request["work"]).parent / "how"
        how.write_text(f"{request['processes']} {'forked' if warm_parent() else 'new'}")
        finish()
    elif behaviour == "closes-its-output":
        finish()
        sys.stdout.close()
    elif behaviour in ("makes-its-observation-a-pipe", "makes-its-observation-endless"):
        reach("train")
        observation = Path(request["observation"])
        observation.unlink()
        os.mkfifo(observation) if behaviour.endswith("pipe") else observation.symlink_to("/dev/zero")
        time.sleep(0.3)
    elif behaviour.startswith("writes-to-the-channel"):
        reach("train")
        parent = warm_parent()
        if parent:
            what = behaviour.removeprefix("writes-to-the-channel-")
            content = {"no-json": b"x\\n", "no-object": b"[]\\n", "an-answer": b'{"pid": 1, "ended": true}\\n',
                       "half": b"x" * 60000, "deep": b"[" * 60000 + b"\\n"}[what]
            pipes = [name for name in os.listdir(f"/proc/{parent}/fd")
                     if os.readlink(f"/proc/{parent}/fd/{name}").startswith("pipe:")
                     and "01" == Path(f"/proc/{parent}/fdinfo/{name}").read_text().split()[3][-2:]]
            channel = os.open(f"/proc/{parent}/fd/{pipes[0]}", os.O_WRONLY)
            for _ in range(20 if len(content) == 60000 else 1):
                os.write(channel, content)
        finish()
    elif behaviour == "makes-its-observation-a-directory":
        os.makedirs(request["observation"])
        time.sleep(0.3)
    elif behaviour == "removes-its-work":
        import shutil
        shutil.rmtree(request["work"])
        Path(request["work"]).write_text("a file in place of the directory")
        time.sleep(0.3)
    elif behaviour == "stops-its-parent-once":
        mark = Path(request["work"]).parent / "stopped"
        reach("train")
        if not mark.exists():
            mark.write_text("")
            os.kill(warm_parent(), signal.SIGSTOP)
            time.sleep(600)
        finish()
    elif behaviour in ("clean-daemon", "clean-daemon-and-death", "clean-daemon-and-hang"):
        # No token in its environment, no group and no session of ours, and its parent has ended.
        reach("train")
        pid = Path(request["work"]).parent / "clean"
        daemon = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"
        subprocess.run(["sh", "-c", f"env -i setsid sh -c '{daemon}' >/dev/null 2>&1 </dev/null &"], check=True)
        while not pid.exists():
            time.sleep(0.01)
        if behaviour == "clean-daemon-and-death":
            time.sleep(0.0 if warm_parent() else 0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "clean-daemon-and-hang":
            time.sleep(600)
        finish()
    elif behaviour == "greedy-daemon":
        reach("train")
        full = Path(request["work"]).parent / "full"
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                block = bytearray(256 * 1024 * 1024)
                block[::4096] = b"x" * len(block[::4096])
                full.write_text("")
                time.sleep(600)
            os._exit(0)
        while not full.exists():
            time.sleep(0.01)
        time.sleep(600)
    elif behaviour == "needs-100-mb":
        if not warm_parent():
            prepare()
        reach("train")
        block = bytearray(100 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(1)
        finish()
    elif behaviour == "keeps-at-home":
        Path(os.environ["HOME"] if not warm_parent() else WARM_HOME, "kept").write_text("mine")
        time.sleep(1.0)
        finish()
    elif behaviour == "looks-at-home":
        home = Path(os.environ["HOME"] if not warm_parent() else WARM_HOME)
        first = not (Path(request["work"]).parent / "looked").exists()
        deadline = time.monotonic() + (30 if first else 0.5)
        while not (home / "kept").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with (Path(request["work"]).parent / "looked").open("a") as file:
            file.write(f"{(home / 'kept').exists()}\\n")
        finish()
    elif behaviour == "brief":
        reach("train")
        time.sleep(0.15)
        finish()
"""

UNKNOWN = '    else:\n        raise SystemExit(f"unknown'
PREPARE = 'def prepare():\n    """What a real worker imports."""\n'


def warm_package(folder: Path, *, prepare: str = "    pass") -> Path:
    """A package whose worker has these behaviours; ``prepare`` is the body of what imports."""
    assert UNKNOWN in WORKER
    assert PREPARE in WORKER
    worker = WORKER.replace("def run(path):", f"{PARENT}\nWARM_HOME = os.environ['HOME']\n\ndef run(path):", 1)
    worker = worker.replace(UNKNOWN, f"{BEHAVIOURS.lstrip(chr(10))}{UNKNOWN}")
    worker = worker.replace(PREPARE, f"def prepare():\n{prepare}\n")
    return fake_package(folder, worker)
