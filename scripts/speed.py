"""Times mounts of one bucket beside each other: `scripts/bench --s3`.

The server is that of `tests/requests`, in memory and built for release; every request waits for as long as is asked for.
Each run is on a fresh mount, and on objects that no other run has changed.
"""

import http.client
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import counting

MIB = 1 << 20
BIG, LARGE = 128 * MIB, 32 * MIB
# How often it is read again at random.
AGAIN = 20
# After so many seconds it is given up.
GIVEN_UP = 60


def small(prefix, count):
    body = os.urandom(4096)
    return [(f"{prefix}f{i:05d}", body) for i in range(count)]


def read_in_order(d, _):
    for i in range(300):
        fd = os.open(f"{d}/small/f{i:05d}", os.O_RDONLY)
        assert len(os.read(fd, 131072)) == 4096
        os.close(fd)


def write_each(d, names, flags):
    data = os.urandom(4096)
    for name in names:
        fd = os.open(f"{d}/{name}", os.O_WRONLY | flags, 0o644)
        os.write(fd, data)
        os.close(fd)


def create(d, _):
    write_each(d, [f"d/n{i:05d}" for i in range(100)], os.O_CREAT | os.O_EXCL)


def overwrite(d, _):
    write_each(d, [f"d/f{i:05d}" for i in range(50)], os.O_TRUNC)


def write_big(d, _):
    data = os.urandom(MIB)
    fd = os.open(f"{d}/out", os.O_WRONLY | os.O_CREAT, 0o644)
    for _ in range(BIG // MIB):
        os.write(fd, data)
    os.fsync(fd)
    os.close(fd)


def read_big(d, _):
    buffer, total = bytearray(MIB), 0
    with open(f"{d}/big", "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    assert total == BIG


def read_at_random(d, _):
    blocks = list(range(BIG // (128 << 10)))
    random.Random(7).shuffle(blocks)
    fd = os.open(f"{d}/big", os.O_RDONLY)
    for block in blocks:
        assert len(os.pread(fd, 128 << 10, block * (128 << 10))) == 128 << 10
    os.close(fd)


def read_again_at_random(d, _):
    rounds, began = random.Random(7), time.perf_counter()
    blocks = list(range(BIG // (128 << 10)))
    fd = os.open(f"{d}/big", os.O_RDONLY)
    for _ in range(AGAIN):
        if time.perf_counter() - began > GIVEN_UP:
            raise RuntimeError("given up")
        rounds.shuffle(blocks)
        for block in blocks:
            assert len(os.pread(fd, 128 << 10, block * (128 << 10))) == 128 << 10
    os.close(fd)


def append(d, _):
    fd = os.open(f"{d}/large", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x" * 4096)
    os.fsync(fd)
    os.close(fd)


def change(d, _):
    fd = os.open(f"{d}/large", os.O_WRONLY)
    os.pwrite(fd, b"x" * 4096, LARGE // 2)
    os.fsync(fd)
    os.close(fd)


def sh(script):
    def run(d, work):
        environment = dict(os.environ, WORK=work)
        done = subprocess.run(["bash", "-ec", script], cwd=d, env=environment, capture_output=True, text=True, timeout=counting.LIMIT)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1:] or done.returncode)

    return run


# Objects that nothing changes: filled once.
READ = small("small/", 5000) + [(f"tree/d{d:03d}/f{f:03d}", b"x") for d in range(100) for f in range(50)] + [("big", BIG)]
# Name, objects, what is timed, bytes moved (for MiB/s). Those without READ write.
WORKLOADS = [
    ("mount", READ, None, 0),
    ("ls -l of 5,000 files", READ, sh("test $(ls -l small | grep -c ^-) = 5000"), 0),
    ("find over 5,000 keys", READ, sh("test $(find tree -type f | wc -l) = 5000"), 0),
    ("read 300 files of 4 KiB in order", READ, read_in_order, 0),
    ("read 128 MiB, cold", READ, read_big, BIG),
    ("read 128 MiB by 128 KiB at random, cold", READ, read_at_random, BIG),
    ("the same twenty times over", READ, read_again_at_random, AGAIN * BIG),
    ("write 128 MiB and fsync", [], write_big, BIG),
    ("create 100 files of 4 KiB", small("d/", 1), create, 0),
    ("overwrite 50 files of 4 KiB", small("d/", 50), overwrite, 0),
    ("append 4 KiB to 32 MiB", [("large", LARGE)], append, 0),
    ("change 4 KiB within 32 MiB", [("large", LARGE)], change, 0),
    ("tar x of 100 files", small("d/", 1), sh("tar xf $WORK/src.tar --no-same-permissions --no-same-owner --touch"), 0),
    ("cp -r of 200 files", small("d/", 200), sh("cp -r d copy"), 0),
    ("rename a directory of 1,000 files", small("d/", 1000), sh("mv d moved"), 0),
    ("rm -r of 100 files", small("d/", 100), sh("rm -r d"), 0),
]
# Names of workloads whose end is a close that waits for the server, or does not.
WRITES = {name for name, objects, _, _ in WORKLOADS if objects is not READ and not name.startswith(("rm", "rename"))}


class Server:
    """The server of the tests, whose answers can be delayed."""

    def __init__(self, argv):
        self.store = counting.Store(counting.free_port())
        self.process = subprocess.Popen([*argv, str(self.store.port)])
        # The bucket with the objects that nothing changes.
        self.read = None
        for _ in range(100):
            try:
                return self.delay(0)
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the server does not start")

    def delay(self, milliseconds):
        connection = http.client.HTTPConnection("127.0.0.1", self.store.port, timeout=10)
        connection.request("POST", f"/?delay={milliseconds}")
        assert connection.getresponse().status == 200

    def fill(self, bucket, objects):
        blocks = [(key, os.urandom(MIB) * (body // MIB) if isinstance(body, int) else body) for key, body in objects]
        self.store.fill(bucket, blocks)


def systems(work, binary, store):
    found = counting.systems(work, binary, store, None)
    for system in found:
        system.name = system.name.split(",")[0]
    return found


def touch(size):
    """Has so much memory at hand. A virtual machine may have to get what was free for long from its host, which takes
    longer than to fill it: whoever runs second would be ahead."""
    with mmap.mmap(-1, max(size, mmap.PAGESIZE)) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1


def measure(system, server, workload, delay, work):
    """Seconds that a workload took, or None where it failed."""
    name, objects, run, size = workload
    server.delay(0)
    bucket = f"b-{random.randrange(1 << 48):012x}"
    if objects is not READ:
        server.fill(bucket, objects)
    elif not server.read:
        server.fill(bucket, objects)
        server.read = bucket
    if objects is READ:
        bucket = server.read
    try:
        if run and system.name == "bucketfs":
            # What the server honours is found out once a day.
            system.unmount(*system.mount(work, bucket, server.store.port))
        subprocess.run(["sync"], check=True)
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
        touch(min(4 * size, 1 << 30))
        server.delay(delay)
        began = time.perf_counter()
        at, process = system.mount(work, bucket, server.store.port)
        try:
            if run:
                began = time.perf_counter()
                run(at, work)
            return time.perf_counter() - began
        finally:
            server.delay(0)
            system.unmount(at, process)
    except (OSError, AssertionError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"  {system.name}, {name}: {error}", file=sys.stderr)
        return None


def times(binary, rounds, only, delays):
    """The systems' names, and for each delay the name, the bytes and the median of each system."""
    server = counting.counting_server("--release")
    if not server:
        sys.exit("bench: cannot build the server of tests/requests; is there a cargo?")
    work = tempfile.mkdtemp(prefix="bucketfs-speed.", dir="/var/tmp")
    for name in ("runtime", "state", "staging"):
        os.environ[f"BUCKETFS_{name.upper()}_DIR"] = os.path.join(work, name)
    server = Server([server, "serve"])
    try:
        with tarfile.open(f"{work}/src.tar", "w") as archive:
            for name, body in counting.sources(100):
                path = os.path.join(work, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(body)
                archive.add(path, name)
        all_systems = systems(work, binary, server.store)
        found = {delay: [] for delay in delays}
        for delay in delays:
            for workload in WORKLOADS:
                name, _, _, size = workload
                if only not in name:
                    continue
                by = {s.name: [] for s in all_systems}
                for _ in range(rounds):
                    for system in all_systems:
                        by[system.name].append(measure(system, server, workload, delay, work))
                medians = {n: statistics.median(runs) for n, runs in by.items() if None not in runs}
                found[delay].append((name, size, medians))
                print(f"{delay:2d} ms  {name:34s}", "  ".join(f"{n} {s:.3f} s" for n, s in medians.items()), flush=True)
        return [s.name for s in all_systems], found
    finally:
        server.process.kill()
        subprocess.run(["bash", "-c", '. "$0/lib.sh"; clear_away "$1"', counting.HERE, work])
        shutil.rmtree(work, ignore_errors=True)
