"""What races between mounts are made of: mounts, processes, attempts to replace a file, and the judge of them."""

import collections
import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
FORK = multiprocessing.get_context("fork")
# No case of a round may take longer, in seconds.
PATIENCE = 120
# How long names and attributes of another mount may be believed (`--metadata-ttl`), and a machine
# that is busy.
TTL, SLACK = 1.0, 1.0


class Broken(Exception):
    """Something that must hold does not."""


def expect(holds, *what):
    if not holds:
        raise Broken(" ".join(str(w) for w in what))


def code(error):
    return errno.errorcode.get(error.errno, str(error.errno))


# ---------------------------------------------------------------- mounts


class Mount:
    def __init__(self, place, name):
        self.place, self.name = place, name
        self.dir = os.path.join(place.work, name)
        os.makedirs(self.dir, exist_ok=True)
        place.run("mount", place.url, self.dir, *place.arguments)

    def status(self):
        return json.loads(self.place.run("status", "--json", self.dir))[0]

    def leave(self):
        self.place.run("umount", self.dir)
        os.rmdir(self.dir)


class Place:
    """A store, and everything that its mounts keep, below one directory."""

    def __init__(self, url):
        self.work = tempfile.mkdtemp(prefix="br.", dir=os.environ.get("BUCKETFS_TEST_DIR", "/var/tmp"))
        self.binary = os.path.join(self.work, "bucketfs")
        shutil.copy(self.shell("bucketfs_binary"), self.binary)
        # What bucketfs keeps goes here, and no other setting of the environment reaches it.
        for name in [name for name in os.environ if name.startswith("BUCKETFS_")]:
            del os.environ[name]
        for name in ("runtime", "state", "staging"):
            os.environ[f"BUCKETFS_{name.upper()}_DIR"] = os.path.join(self.work, name)
        self.plain, self.arguments = None, []
        if url is None:
            bucket = f"races-{int(time.time())}-{os.getpid()}"
            self.shell(f"make_bucket {bucket}")
            self.url, self.arguments = f"s3://{bucket}", self.shell("s3_arguments").split()
        elif url != "file:":
            self.url = url
        else:
            self.plain = os.path.join(self.work, "store")
            os.mkdir(self.plain)
            self.url = f"file://{self.plain}"

    @staticmethod
    def shell(command):
        done = subprocess.run(["bash", "-c", f'. "$0/lib.sh"; {command}', HERE], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"races: {command} failed")
        return done.stdout.strip()

    def run(self, *arguments):
        done = subprocess.run([self.binary, *arguments], capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        expect(done.returncode == 0, "bucketfs", *arguments, "exited with", done.returncode, done.stderr.strip())
        return done.stdout

    @contextlib.contextmanager
    def fresh(self):
        mount = Mount(self, "judge")
        try:
            yield mount.dir
        finally:
            mount.leave()

    def clear(self):
        subprocess.run(["bash", "-c", '. "$0/lib.sh"; clear_away "$1"', HERE, self.work])


# ---------------------------------------------------------------- processes


def together(jobs):
    """Runs each function in a process of its own, and gives their answers in order. A job gets a
    function that returns when all of them have called it."""
    barrier = FORK.Barrier(len(jobs))
    meet = lambda: barrier.wait(PATIENCE / 2)
    answers, failures = [], []
    # Each is waited for, so that none is left when the case has failed.
    for answer in [begin(job, meet) for job in jobs]:
        try:
            answers.append(answer())
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers


def begin(job, *arguments):
    """Starts a function in a process, and gives a function that waits for its answer."""
    ours, theirs = FORK.Pipe(duplex=False)

    def child():
        for stop in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(stop, signal.SIG_DFL)
        random.seed(os.getpid())
        try:
            theirs.send((None, job(*arguments)))
        except BaseException as error:
            where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)))
            theirs.send((f"{type(error).__name__}: {error} ({where})", None))

    process = FORK.Process(target=child, daemon=True)
    process.start()
    theirs.close()

    def answer():
        try:
            expect(ours.poll(PATIENCE), "a process hangs")
            failure, value = ours.recv()
        finally:
            process.join(1)
            if process.is_alive():
                process.kill()
        expect(failure is None, failure)
        return value

    return answer


# ---------------------------------------------------------------- files


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def put(path, data, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
    fd = os.open(path, flags, 0o644)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def get(path):
    with open(path, "rb") as file:
        return file.read()


def get_patiently(path):
    """Reads again when the version that was opened has vanished."""
    for _ in range(100):
        try:
            return get(path)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    raise Broken(path + " was ESTALE a hundred times")


class Attempt:
    """One try to replace a file's content, and what became of it."""

    def __init__(self, data, told="nothing written"):
        self.data, self.told, self.closing, self.closed = data, told, 0.0, 0.0

    def close(self, fd):
        self.closing = time.monotonic()
        try:
            os.close(fd)
            self.told = "accepted"
        except OSError as error:
            self.told = code(error)
        self.closed = time.monotonic()
        return self

    @property
    def accepted(self):
        return self.told == "accepted"

    @property
    def refused(self):
        return self.told in ("ESTALE", "EEXIST")


def judge(directory, name, attempts):
    """Each refused attempt has its bytes beside the file, and nothing else is beside it. Gives the
    file's content."""
    told = collections.Counter(a.told for a in attempts)
    expect(all(a.accepted or a.refused for a in attempts), name, "was told", dict(told))
    beside = [n for n in os.listdir(directory) if n.startswith(name + ".conflict-")]
    kept = collections.Counter(get(os.path.join(directory, n)) for n in beside)
    lost = collections.Counter(a.data for a in attempts if a.refused)
    show = lambda some: [d[:40] for d in some]
    expect(lost == kept, name, "told", dict(told), "- refused and not kept:", show(lost - kept), "- kept and not refused:", show(kept - lost))
    return get(os.path.join(directory, name))


def is_last(attempt, attempts):
    """Whether none of the other accepted attempts came certainly later."""
    return attempt.accepted and not any(a.accepted and a.closing > attempt.closed for a in attempts)


# Versions: one line, again and again, in a length that tells versions apart.
LINE = 16


def version(number, base):
    return b"%015d\n" % number * (base // LINE + number % 97)


def number_of(data, base):
    """The version that this is, or None for what is no version."""
    try:
        number = int(data[:LINE])
    except ValueError:
        return None
    return number if data == version(number, base) else None


class Round:
    def __init__(self, place, number, writers, reader, case):
        self.place, self.writers, self.reader = place, writers, reader
        self.name = f"r{number}-{case}"
        os.mkdir(self.on(writers[0]))
        for mount in (*writers[1:], reader):
            self.await_name(self.on(mount))

    @staticmethod
    def await_name(path):
        end = time.monotonic() + TTL + 4
        while not os.path.exists(path):
            expect(time.monotonic() < end, path, "does not appear on another mount")
            time.sleep(0.01)

    def on(self, mount, name=""):
        return os.path.join(mount.dir, self.name, name)

    def seed(self, name, data):
        """Puts a file there that every mount sees."""
        put(self.on(self.writers[0], name), data)
        for mount in (*self.writers, self.reader):
            self.await_name(self.on(mount, name))
            expect(get(self.on(mount, name)) == data, "an open on", mount.name, "does not see", name)

    def crew(self, each):
        """(mount, label) for that many processes on every mount."""
        return [(m, f"{m.name}{i}") for m in self.writers for i in range(each)]

    @contextlib.contextmanager
    def reading(self, name):
        """Reads a file on the reader's mount, all the while. Gives a list, which at the end has what was read,
        without repetitions."""
        path, stop, reads = self.on(self.reader, name), FORK.Event(), []

        def run():
            seen = []
            while not stop.wait(0.005):
                try:
                    data = get(path)
                except OSError as error:
                    expect(error.errno == errno.ESTALE, "a reader of", name, "is told", code(error))
                    continue
                if not seen or seen[-1] != data:
                    seen.append(data)
            return seen

        answer = begin(run)
        try:
            yield reads
        finally:
            stop.set()
            reads += answer()

    @contextlib.contextmanager
    def verdict(self):
        with self.place.fresh() as root:
            yield os.path.join(root, self.name)
