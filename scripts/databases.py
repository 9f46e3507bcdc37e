"""What databases cost as directories: `scripts/bench --databases`.

Every figure stands beside what a plain client needs for the same on the same server in the same run. One operation at a time also
stands beside the filesystem of examples/floor.rs: a mount cannot be faster than a round trip of the client and that together.
"""

import collections
import hashlib
import importlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import counting
import local_cost
from local_cost import MIB, drop

SMALL, MANY = 1000, 100_000
# Large files: of GridFS smaller, since the server keeps it, and the log of what has changed, in 1 GiB of memory.
LARGE, GRIDFS = 1024 * MIB, 256 * MIB
# A mount that is not done after so many seconds loses its daemon, and then whoever waits for it gets an error.
LIMIT = 900
ROUNDS = 5
# Calls of redis-cli that are made; one for each value would take long.
CALLS = 100

LEGEND = (
    f"One run of `scripts/bench --databases`: each on a fresh mount; of single values the median of {ROUNDS} times, of listings of Redis the best of 3. Beside it stands a\n"
    "plain client of the same server, on this machine. MiB behind a figure is the most memory that the daemon had, whose cache may take 256 MiB. The aims:\n"
    "one value in at most 2 round trips and bare FUSE, so 1.0× or less, and 200 MiB of memory for large files. MongoDB is mongo-java-server, an\n"
    "emulator, which has no room for 1 GiB and looks at a whole collection for each range of `_id`."
)


class Watched(local_cost.Mount):
    """A mount that cannot hang for ever."""

    def begin(self, work, command):
        self.peak = 0
        super().begin(work, command)
        self.timer = threading.Timer(LIMIT, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def __exit__(self, *_):
        """Keeps the most memory that the daemon had, in MiB."""
        try:
            line = next((line for line in open(f"/proc/{self.process.pid}/status") if line.startswith("VmHWM")), "VmHWM: 0")
            self.peak = int(line.split()[1]) / 1024
        finally:
            super().__exit__()
            self.timer.cancel()


class Floor(Watched, local_cost.Floor):
    pass


class Server:
    """One of scripts/servers, in a directory and on a port of its own."""

    def __init__(self, name, work, environment):
        self.command, self.environment = os.path.join(counting.HERE, "servers", name), environment
        self.work = tempfile.mkdtemp(prefix=name, dir=work)
        self.port = counting.free_port()

    def __enter__(self):
        done = subprocess.run([self.command, "start", self.work, str(self.port)], env=self.environment, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["does not start"])[-1])
        return self

    def __exit__(self, *_):
        subprocess.run([self.command, "stop", self.work], env=self.environment, capture_output=True, timeout=60)
        shutil.rmtree(self.work, ignore_errors=True)


def library(name, package):
    """A module of Debian, which is installed if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        subprocess.run(["bash", "-c", '. "$0/lib.sh"; apt_install "$1"', counting.HERE, package], capture_output=True, timeout=LIMIT)
        importlib.invalidate_caches()
        return importlib.import_module(name)


# ---------------------------------------------------------------- what is timed


def took(run, *arguments):
    began = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - began


def read_each(d):
    for i in range(SMALL):
        fd = os.open(f"{d}/f{i:07d}", os.O_RDONLY)
        assert len(os.read(fd, 131072)) == 4096
        os.close(fd)


def sh(script, d="/"):
    done = subprocess.run(["bash", "-c", script], cwd=d, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-200:] or script)
    return done.stdout


def cat(d, begin, suffix=""):
    """One cat of 1,000 files."""
    sh(f"cat f{{{begin:07d}..{begin + SMALL - 1:07d}}}{suffix} >/dev/null", d)


def listing(binary, work, url, script):
    """Seconds of a program that lists, and the mount."""
    with Watched(binary, work, url) as mount:
        drop()
        return took(sh, f"test $({script} | grep -c f0) = {MANY}", mount.at), mount


def blocks(size):
    """A large file, a MiB at a time, none like another."""
    block = bytearray(random.Random(1).randbytes(MIB))
    for i in range(size // MIB):
        block[:8] = i.to_bytes(8, "big")
        yield block


def write_large(path, size):
    with open(path, "wb", buffering=0) as file:
        for block in blocks(size):
            file.write(block)


def digest(pieces):
    told = hashlib.sha256()
    for piece in pieces:
        told.update(piece)
    return told.digest()


# ---------------------------------------------------------------- rows


def us(seconds):
    return f"{seconds / SMALL * 1e6:.0f} µs"


def duration(seconds):
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def times(ours, theirs):
    return f"{ours / theirs:.{1 if ours > theirs / 10 else 3}f}×"


def values(binary, floor, server, work, redis):
    """1,000 values of 4 KiB, one at a time: written, and read cold."""
    url = f"redis://127.0.0.1:{server.port}/0?layout=objects"
    client = redis.Redis(port=server.port, db=1)

    def in_c():
        """Seconds of the client in C, for which no Python is waited for."""
        told = sh(f"redis-benchmark -p {server.port} -c 1 -n {SMALL} -d 4096 -t set,get --csv").replace('"', "").splitlines()
        return {f"bare {call}": SMALL / float(rate) for call, rate, *_ in (line.split(",") for line in told[1:])}

    def set_each():
        value = os.urandom(4096)
        for i in range(SMALL):
            client.set(f"f{i:07d}", value)

    def get_each():
        for i in range(SMALL):
            assert len(client.get(f"f{i:07d}")) == 4096

    found = collections.defaultdict(list)
    for i in range(ROUNDS):
        for call, seconds in in_c().items():
            found[call].append(seconds)
        found["SET"].append(took(set_each))
        with Watched(binary, work, url) as mount:
            found["write"].append(took(local_cost.create, f"{mount.at}/d{i}", SMALL))
        found["GET"].append(took(get_each))
        with Watched(binary, work, url) as mount:
            drop()
            found["read"].append(took(read_each, f"{mount.at}/d{i}"))
        with Floor(floor, work) as mount:
            # Its one directory is the root.
            found["least write"].append(took(local_cost.create, mount.at, SMALL))
            drop()
            found["least read"].append(took(read_each, mount.at))
    found = {what: statistics.median(got) for what, got in found.items()}
    for what, call in (("read", "GET"), ("write", "SET")):
        ours, theirs, bare, least = found[what], found[call], found[f"bare {call}"], found[f"least {what}"]
        name = {"read": "read 1,000 values of 4 KiB, cold, each", "write": "create, write 4 KiB, close, 1,000 times, each"}[what]
        yield name, us(ours), f"{call} by redis-py {us(theirs)}, bare FUSE {us(least)}", f"{times(ours, 2 * theirs + least)} of 2 × {call} + FUSE"
        yield "", "", f"{call} by redis-benchmark {us(bare)}", f"{times(ours, 2 * bare + least)} of 2 × {call} + FUSE"


def listings(binary, server, work, redis):
    """Directories of 100,000 keys, and single calls for 1,000 of them."""
    data, objects = (f"redis://127.0.0.1:{server.port}/{way}" for way in ("2?separator=:", "3?layout=objects"))
    pipe = redis.Redis(port=server.port, db=2).pipeline(transaction=False)
    for i in range(MANY):
        pipe.set(f"d:f{i:07d}", f"line {i}")
    pipe.execute()
    with Watched(binary, work, objects) as mount:
        os.mkdir(f"{mount.at}/d")
        for i in range(MANY):
            with open(f"{mount.at}/d/f{i:07d}", "wb", buffering=0) as file:
                file.write(b"line %d" % i)
    for name, url, number in (("", data, 2), (", layout=objects", objects, 3)):
        scan = min(took(sh, f"redis-cli -p {server.port} -n {number} --scan | wc -l") for _ in range(3))
        for what, script in (("ls", "ls -f d"), ("ls -l", "ls -l d")):
            ours, mount = min((listing(binary, work, url, script) for _ in range(3)), key=lambda got: got[0])
            beside = f"redis-cli, SCAN of all {duration(scan)}"
            yield f"{what} of {MANY:,} keys{name}, cold", f"{duration(ours)}, {mount.peak:.0f} MiB", beside, times(ours, scan)
    # Those of a program that knows the names: nothing was listed before.
    with Watched(binary, work, data) as mount:
        drop()
        ours, again = (took(cat, f"{mount.at}/d", begin) for begin in (0, SMALL))
    single = took(sh, f"for i in $(seq -w {CALLS}); do redis-cli -p {server.port} -n 2 get d:f0000$i >/dev/null || exit; done") * SMALL / CALLS
    beside = f"a redis-cli for each {duration(single)} ({CALLS} calls, scaled)"
    yield f"cat of {SMALL:,} strings among {MANY:,}, cold", duration(ours), beside, times(ours, single)
    yield f"cat of the next {SMALL:,}", duration(again), beside, times(again, single)


def documents(binary, server, work, pymongo):
    """A collection of 100,000 documents: listed, and 1,000 of them read."""
    import bson.json_util

    collection = pymongo.MongoClient(f"mongodb://127.0.0.1:{server.port}").bench.d
    for i in range(0, MANY, SMALL):
        collection.insert_many([{"_id": f"f{n:07d}", "n": n, "text": f"line {n}"} for n in range(i, i + SMALL)])

    def printed(found):
        with open("/dev/null", "w") as out:
            out.writelines(bson.json_util.dumps(document) + "\n" for document in found)

    everything = took(lambda: printed(collection.find()))
    each = took(lambda: printed(collection.find_one({"_id": f"f{i:07d}"}) for i in range(SMALL)))
    url = f"mongodb://127.0.0.1:{server.port}/bench"
    for what, script in (("ls", "ls -f d"), ("ls -l", "ls -l d")):
        ours, mount = listing(binary, work, url, script)
        beside = f"pymongo, all printed as JSON {duration(everything)}"
        yield f"{what} of {MANY:,} documents of MongoDB, cold", f"{duration(ours)}, {mount.peak:.0f} MiB", beside, times(ours, everything)
    with Watched(binary, work, url) as mount:
        drop()
        ours = took(cat, f"{mount.at}/d", 0, ".json")
    yield f"cat of {SMALL:,} of them, cold", duration(ours), f"pymongo, find_one of each {duration(each)}", times(ours, each)


def large(binary, work, url, what, size, put, get, clear):
    """A large file: written through one mount, read through another, and read once more for its digest."""
    theirs, found = {"write": took(put), "read": took(get)}, {}
    clear()
    with Watched(binary, work, url) as mount:
        found["write"] = took(write_large, f"{mount.at}/file", size), mount
    with Watched(binary, work, url) as mount:
        drop()
        found["read"] = took(local_cost.read, f"{mount.at}/file"), mount
        drop()
        with open(f"{mount.at}/file", "rb", buffering=0) as file:
            if digest(iter(lambda: file.read(MIB), b"")) != digest(blocks(size)):
                raise RuntimeError(f"{what}: what is read is not what was written")
    speed = lambda seconds: f"{size / 1e6 / seconds:,.0f} MB/s"
    for way, (ours, mount) in found.items():
        yield f"{way} {size // MIB:,} MiB, {what}", f"{speed(ours)}, {mount.peak:.0f} MiB", f"Python {speed(theirs[way])}", f"{theirs[way] / ours:.1f} of its speed"


def large_of_redis(binary, server, work, redis):
    client = redis.Redis(port=server.port, db=4)

    def put():
        for i, block in enumerate(blocks(LARGE)):
            client.set(f"chunk{i}", bytes(block))

    def get():
        for i in range(LARGE // MIB):
            assert len(client.get(f"chunk{i}")) == MIB

    yield from large(binary, work, f"redis://127.0.0.1:{server.port}/5?layout=objects", "Redis, layout=objects", LARGE, put, get, client.flushdb)


def large_of_mongodb(binary, server, work, pymongo):
    database = pymongo.MongoClient(f"mongodb://127.0.0.1:{server.port}").bench
    bucket = library("gridfs", "python3-gridfs").GridFS(database, "theirs")

    def put():
        with bucket.new_file(_id=1) as file:
            for block in blocks(GRIDFS):
                file.write(bytes(block))

    def get():
        # What GridFS itself does, but the emulator would send all in one message, which is too long.
        for _ in database.theirs.chunks.find({"files_id": 1}).sort("n").batch_size(16):
            pass

    url = f"mongodb://127.0.0.1:{server.port}/bench/ours?layout=gridfs"
    yield from large(binary, work, url, "GridFS", GRIDFS, put, get, lambda: bucket.delete(1))


def measure(binary, floor):
    """The rows of the table, and lines about what is not in it."""
    # What is built for the servers stays where it is.
    environment, work = dict(os.environ), tempfile.mkdtemp(prefix="bucketfs-bench.", dir="/var/tmp")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended"))
    for name in ("runtime", "state"):
        os.environ[f"BUCKETFS_{name.upper()}_DIR"] = os.path.join(work, name)
    os.environ["XDG_CACHE_HOME"] = os.path.join(work, "cache")
    parts = [
        ("redis", "redis", lambda *on: values(binary, floor, *on)),
        ("redis", "redis", lambda *on: listings(binary, *on)),
        ("redis", "redis", lambda *on: large_of_redis(binary, *on)),
        ("mongo", "pymongo", lambda *on: documents(binary, *on)),
        ("mongo", "pymongo", lambda *on: large_of_mongodb(binary, *on)),
    ]
    rows, missing = [], []
    try:
        for name, client, part in parts:
            try:
                found = library(client, f"python3-{client}")
                # Each on a new server, which has nothing of the others in memory.
                with Server(name, work, environment) as server:
                    for row in part(server, work, found):
                        rows.append(row)
                        print("  ".join(row), flush=True)
            # The libraries have errors of their own.
            except Exception as error:
                missing.append(f"{name}: {error}")
                print(f"bench: {missing[-1]}", file=sys.stderr, flush=True)
        return rows, missing
    finally:
        subprocess.run(["bash", "-c", '. "$0/lib.sh"; clear_away "$1"', counting.HERE, work], timeout=120)
