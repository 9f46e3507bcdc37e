"""What a mount costs where no store is waited for: `scripts/bench --local`.

Every figure stands beside one of the machine itself from the same run, and with the CPU time that the daemon used.
"""

import ctypes
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import time

MIB = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_BASIC = -100, 0x2000, 0x7FF
# How many names the directories have for the cost of each.
COUNTS = (1_000, 10_000, 100_000, 1_000_000)


class Mount:
    """A mount of its own, with the daemon's CPU time and memory."""

    def __init__(self, binary, work, url, *options):
        self.at = os.path.join(work, "mnt")
        self.begin(work, [binary, "mount", url, self.at, "-f", *options])

    def begin(self, work, command):
        os.makedirs(self.at, exist_ok=True)
        with open(os.path.join(work, "log"), "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while not os.path.ismount(self.at):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} does not mount: {open(os.path.join(work, 'log')).read()[-300:]}")
            time.sleep(0.01)
        time.sleep(0.3)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _ in range(50):
            if subprocess.run(["umount", self.at], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            subprocess.run(["umount", "-l", self.at], capture_output=True)

    def cpu(self):
        """Seconds of all its threads."""
        tasks, total = f"/proc/{self.process.pid}/task", 0
        for task in os.listdir(tasks):
            try:
                total += int(open(f"{tasks}/{task}/schedstat").read().split()[0])
            except OSError:
                pass
        return total / 1e9

    def memory(self):
        """Resident MiB."""
        line = next(line for line in open(f"/proc/{self.process.pid}/status") if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


class Floor(Mount):
    """The filesystem of examples/floor.rs."""

    def __init__(self, binary, work):
        self.at = os.path.join(work, "mnt")
        self.begin(work, [binary, self.at])


def timed(mount, run):
    """Seconds that it took, and the daemon's of CPU."""
    cpu, began = mount.cpu() if mount else 0, time.perf_counter()
    run()
    return time.perf_counter() - began, (mount.cpu() if mount else 0) - cpu


def median_us(call, times):
    took = []
    for _ in range(times):
        began = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - began)
    return statistics.median(took) / 1000


def asked(path):
    """A stat that the kernel may not answer itself."""
    name, out = path.encode(), ctypes.create_string_buffer(256)

    def call():
        assert LIBC.statx(AT_FDCWD, name, AT_STATX_FORCE_SYNC, STATX_BASIC, out) == 0

    return call


def drop():
    subprocess.run(["sync"], check=True)
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def create(d, count):
    data = os.urandom(4096)
    os.makedirs(d, exist_ok=True)
    for i in range(count):
        fd = os.open(f"{d}/f{i:07d}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, data)
        os.close(fd)


def write(path, total, piece):
    data = os.urandom(piece)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(total // piece):
        os.write(fd, data)
    os.close(fd)


def read(path):
    buffer = bytearray(MIB)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def list_long(d):
    return sum(1 for entry in os.scandir(d) if entry.stat().st_size >= 0)


# ---------------------------------------------------------------- figures


def one_by_one(mount, count):
    """Microseconds of what the daemon is asked one thing at a time: stat, read, and a new file; and its CPU for that one."""
    with open(f"{mount.at}/asked", "wb") as file:
        file.write(os.urandom(4096))
    stat = median_us(asked(f"{mount.at}/asked"), count)
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(f"{mount.at}/asked", os.O_RDONLY | os.O_DIRECT)
    read = median_us(lambda: os.preadv(fd, [buffer], 0), count)
    os.close(fd)
    new, cpu = timed(mount, lambda: create(mount.at, count // 10))
    return stat, read, new / count * 1e7, cpu / count * 1e7


def small(binary, floor, work, disk, shm):
    """One thing at a time, over and over, beside a filesystem in a process that does next to nothing."""
    rows, count = [], 30_000
    with Mount(binary, work, "memory:") as mount:
        rows.append(("memory in use after mounting", f"{mount.memory():.0f} MiB", "", ""))
        for at in (mount.at, shm):
            with open(f"{at}/file", "wb") as file:
                file.write(os.urandom(4096))
        ours, theirs = (median_us(lambda: os.stat(f"{at}/file"), 100_000) for at in (mount.at, shm))
        rows.append(("stat that the kernel answers", f"{ours:.2f} µs", f"tmpfs {theirs:.2f} µs", f"{theirs / ours:.2f} of its speed"))
    cpus = os.sched_getaffinity(0)
    # Where one CPU has to wake the other, that takes longer than all else.
    for where, allowed in (("", cpus), (", all on one CPU", {max(cpus)})):
        os.sched_setaffinity(0, allowed)
        try:
            with Mount(binary, work, "memory:") as mount:
                ours = one_by_one(mount, count)
            with Floor(floor, work) as mount:
                least = one_by_one(mount, count)
        finally:
            os.sched_setaffinity(0, cpus)
        for what, mine, bare in zip(("stat that the daemon answers", "4 KiB read that the daemon answers", "create, write 4 KiB, close"), ours, least):
            rows.append((what + where, f"{mine:.1f} µs", f"bare FUSE {bare:.1f} µs", f"{mine / bare:.1f}×"))
        rows.append((f"the daemon's CPU for that{where}", f"{ours[3]:.0f} µs", f"bare FUSE {least[3]:.0f} µs", f"{ours[3] / least[3]:.1f}×"))
    native, _ = timed(None, lambda: create(f"{disk}/new", count // 10))
    rows.append(("", "", f"disk {native / count * 1e7:.0f} µs", ""))
    return rows


def stream(binary, work):
    """Large files. Each on a fresh mount, best of three: what the machine can do, not what else it did."""
    rows = []

    def best(name, size, prepare, run):
        got = []
        for _ in range(3):
            with Mount(binary, work, "memory:", "--memory", "2G") as mount:
                prepare(f"{mount.at}/file")
                drop()
                got.append(timed(mount, lambda: run(f"{mount.at}/file")))
        took, cpu = min(got)
        rows.append((name, f"{size / 1e6 / took:,.0f} MB/s", f"{min(cpu for _, cpu in got):.2f} s of the daemon's CPU", ""))

    def cached(path):
        write(path, 1024 * MIB, MIB)
        drop()
        read(path)

    best("write 1 GiB", 1024 * MIB, lambda path: None, lambda path: write(path, 1024 * MIB, MIB))
    best("write 256 MiB in pieces of 4 KiB", 256 * MIB, lambda path: None, lambda path: write(path, 256 * MIB, 4096))
    best("read 1 GiB from the daemon's memory", 1024 * MIB, cached, read)
    return rows


def entries(binary, work, disk):
    """Microseconds for each name of `ls -l`, by how many there are: of the disk, of memory: and of file:; and MiB for them."""
    by, memory = {"disk": {}, "memory:": {}, "file:": {}}, {}
    for count in COUNTS:
        store = os.path.join(disk, str(count))
        os.makedirs(f"{store}/d")
        for i in range(count):
            os.close(os.open(f"{store}/d/f{i:07d}", os.O_WRONLY | os.O_CREAT, 0o644))
        drop()
        by["disk"][count] = timed(None, lambda: list_long(f"{store}/d"))[0] / count * 1e6
        for name, url in (("memory:", f"memory:?seed={store}"), ("file:", f"file://{store}")):
            with Mount(binary, work, url) as mount:
                before = mount.memory()
                drop()
                by[name][count] = timed(mount, lambda: list_long(f"{mount.at}/d"))[0] / count * 1e6
                # What the listing took for a while is given back by then.
                time.sleep(1.5)
                memory[name, count] = mount.memory() - before
        shutil.rmtree(store)
    return by, memory


# ---------------------------------------------------------------- report


def plot(by):
    """Lines of microseconds for each name over the number of names."""
    left, top, width, height = 70, 40, 520, 240
    most = max(us for line in by.values() for us in line.values()) * 1.1
    x = lambda count: left + width * COUNTS.index(count) / (len(COUNTS) - 1)
    y = lambda us: top + height * (1 - us / most)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{top + height + 50}" font-family="sans-serif" font-size="12">']
    out.append('<rect width="100%" height="100%" fill="#fff"/>')
    for i, (name, colour) in enumerate(zip(by, ("#8a929c", "#e0812b", "#c2410c"))):
        label = name if name == "disk" else f"bucketfs {name}"
        out.append(f'<rect x="{left + i * 150}" y="10" width="12" height="12" fill="{colour}"/><text x="{left + 18 + i * 150}" y="20">{label}</text>')
        points = " ".join(f"{x(count):.0f},{y(us):.1f}" for count, us in by[name].items())
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for count, us in by[name].items():
            out.append(f'<circle cx="{x(count):.0f}" cy="{y(us):.1f}" r="3" fill="{colour}"/><text x="{x(count) + 5:.0f}" y="{y(us) - 6:.1f}" font-size="10">{us:.1f}</text>')
    for count in COUNTS:
        out.append(f'<text x="{x(count):.0f}" y="{top + height + 20}" text-anchor="middle">{count:,}</text>')
    out.append(f'<line x1="{left}" x2="{left + width}" y1="{top + height}" y2="{top + height}" stroke="#999"/>')
    out.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">names in the directory</text>')
    out.append(f'<text x="16" y="{top + height / 2}" text-anchor="middle" transform="rotate(-90 16 {top + height / 2})">µs for each, ls -l, cold</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def markdown(rows):
    lines = ["|  | bucketfs | beside it |  |", "| --- | ---: | ---: | ---: |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def measure(binary, floor):
    """The rows of the table, and the plot."""
    work = tempfile.mkdtemp(prefix="bucketfs-bench.", dir="/var/tmp")
    shm = tempfile.mkdtemp(prefix="bucketfs-bench.", dir="/dev/shm")
    for name in ("runtime", "state"):
        os.environ[f"BUCKETFS_{name.upper()}_DIR"] = os.path.join(work, name)
    # Not by name: what waits for a commit would have to wait there.
    os.environ["XDG_CACHE_HOME"] = os.path.join(work, "cache")
    disk = os.path.join(work, "disk")
    os.mkdir(disk)
    try:
        rows = small(binary, floor, work, disk, shm)
        rows += stream(binary, work)
        by, memory = entries(binary, work, disk)
        many = 100_000
        for name in ("memory:", "file:"):
            ratio = f"{by[name][many] / by['disk'][many]:.1f}×"
            rows.append((f"ls -l of {many:,} files, cold, {name}", f"{by[name][many] * many / 1e6:.2f} s", f"disk {by['disk'][many] * many / 1e6:.2f} s", ratio))
            told = ", ".join(f"{memory[name, count]:.0f} MiB for {count:,}" for count in (many, COUNTS[-1]))
            rows.append((f"memory after ls -l, {name}", told, "", ""))
        return rows, plot(by)
    finally:
        shutil.rmtree(shm, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
