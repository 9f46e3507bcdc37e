"""Counts the requests that mounts of one bucket send: `scripts/bench --requests`.

Every system talks through a proxy to MinIO, and bucketfs also to the server of `tests/requests`, which has every
condition that Amazon documents. Each row is a fresh mount; counting ends when no request came for a while.
"""

import collections
import concurrent.futures
import datetime
import hashlib
import hmac
import http.client
import http.server
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
USER, SECRET = "testing", "testingtesting"
# One row of one system that takes longer is given up, in seconds.
LIMIT = 180
QUIET = 1.5


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------- counting


def kind(method, path, headers):
    """What a request is called in the tables."""
    url = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
    key = url.path.lstrip("/").partition("/")[2]
    if "uploads" in query or "uploadId" in query:
        return "M"
    if method == "PUT" and "x-amz-copy-source" in headers:
        return "C"
    if method == "POST" and "delete" in query:
        return "B"
    if method == "GET" and not key:
        return "L"
    return {"HEAD": "H", "GET": "G", "PUT": "P", "DELETE": "D"}.get(method, "other")


class Proxy:
    """Passes requests on and counts them. `target` may change between rows."""

    def __init__(self):
        proxy = self
        self.target, self.counts, self.last = None, collections.Counter(), 0
        self.lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            upstream = at = None

            def setup(self):
                super().setup()
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def log_message(self, *_):
                pass

            def pass_on(self):
                headers = {name.lower(): value for name, value in self.headers.items()}
                with proxy.lock:
                    proxy.counts[kind(self.command, self.path, headers)] += 1
                    proxy.last = time.monotonic()
                body = self.body(headers)
                drop = ("connection", "keep-alive", "expect", "transfer-encoding", "content-length")
                sent = {name: value for name, value in headers.items() if name not in drop}
                if body or self.command in ("PUT", "POST"):
                    sent["content-length"] = str(len(body))
                answer = self.ask(body, sent)
                content = answer.read()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("content-length") if self.command == "HEAD" else str(len(content))
                if length is not None and answer.status not in (204, 304):
                    self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                with proxy.lock:
                    proxy.last = time.monotonic()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

            def body(self, headers):
                if headers.get("transfer-encoding", "").lower() != "chunked":
                    return self.rfile.read(int(headers.get("content-length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def ask(self, body, headers):
                for again in (True, False):
                    if self.upstream is None or self.at != proxy.target:
                        self.at = proxy.target
                        self.upstream = http.client.HTTPConnection("127.0.0.1", self.at, timeout=60)
                    try:
                        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                        for name, value in headers.items():
                            self.upstream.putheader(name, value)
                        self.upstream.endheaders(body)
                        return self.upstream.getresponse()
                    except (OSError, http.client.HTTPException):
                        self.upstream.close()
                        self.upstream = None
                        if not again:
                            raise

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self):
        with self.lock:
            self.counts, self.last = collections.Counter(), time.monotonic()

    def settle(self, quiet=QUIET):
        """Waits until no request came for a while; what was counted then."""
        while True:
            with self.lock:
                rest = self.last + quiet - time.monotonic()
                if rest <= 0:
                    return self.counts
            time.sleep(rest + 0.01)


# ---------------------------------------------------------------- stores


class Store:
    """A server that takes objects of ours directly."""

    def __init__(self, port):
        self.port, self.local, self.many = port, threading.local(), None

    def send(self, method, path, body=b""):
        """One signed request (AWS Signature Version 4)."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        day, scope = now[:8], f"{now[:8]}/us-east-1/s3/aws4_request"
        host, payload = f"127.0.0.1:{self.port}", hashlib.sha256(body).hexdigest()
        signed = f"host:{host}\nx-amz-content-sha256:{payload}\nx-amz-date:{now}\n"
        names = "host;x-amz-content-sha256;x-amz-date"
        canonical = f"{method}\n{path}\n\n{signed}\n{names}\n{payload}"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = ("AWS4" + SECRET).encode()
        for part in (day, "us-east-1", "s3", "aws4_request", text):
            key = hmac.new(key, part.encode(), "sha256").digest()
        headers = {
            "x-amz-date": now,
            "x-amz-content-sha256": payload,
            "authorization": f"AWS4-HMAC-SHA256 Credential={USER}/{scope}, SignedHeaders={names}, Signature={key.hex()}",
        }
        for again in (True, False):
            connection = getattr(self.local, "connection", None) or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self.local.connection = connection
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                said = answer.read()
                break
            except (OSError, http.client.HTTPException):
                # A server closes what was idle for long.
                connection.close()
                self.local.connection = None
                if not again:
                    raise
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {said[:200]}")

    def fill(self, bucket, objects):
        self.send("PUT", f"/{bucket}")
        put = lambda entry: self.send("PUT", f"/{bucket}/{urllib.parse.quote(entry[0])}", entry[1])
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for _ in pool.map(put, objects):
                pass


def counting_server(*profile):
    """The command of the server that the tests count with, built if need be; nothing without cargo."""
    if not shutil.which("cargo"):
        return None
    argv = ["cargo", "test", *profile, "--no-run", "--test", "requests", "--message-format=json"]
    built = subprocess.run(argv, cwd=os.path.join(HERE, ".."), capture_output=True, text=True)
    found = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    for one in found:
        if one.get("executable") and one.get("target", {}).get("name") == "requests":
            return one["executable"]
    return None


# ---------------------------------------------------------------- systems


class System:
    """A program that mounts buckets of a store."""

    def __init__(self, name, store, argv):
        self.name, self.store, self.argv = name, store, argv

    def mount(self, work, bucket, port):
        at = tempfile.mkdtemp(prefix="mnt-", dir=work)
        fill = {"bucket": bucket, "at": at, "url": f"http://127.0.0.1:{port}", "work": work}
        others = ("aws_", "rclone_", "s3_")
        kept = {k: v for k, v in os.environ.items() if not k.lower().startswith(others) and not k.lower().endswith("_proxy")}
        environment = dict(
            kept,
            AWS_ACCESS_KEY_ID=USER,
            AWS_SECRET_ACCESS_KEY=SECRET,
            RCLONE_CONFIG_S_TYPE="s3",
            RCLONE_CONFIG_S_PROVIDER="Minio",
            RCLONE_CONFIG_S_ENV_AUTH="true",
            RCLONE_CONFIG_S_REGION="us-east-1",
            RCLONE_CONFIG_S_ENDPOINT=fill["url"],
        )
        argv = [part.format(**fill) for part in self.argv]
        log = open(os.path.join(work, "log"), "ab")
        process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        end = time.monotonic() + 30
        while not os.path.ismount(at):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise RuntimeError(f"{self.name} does not mount")
            time.sleep(0.02)
        return at, process

    def unmount(self, at, process):
        for _ in range(100):
            if subprocess.run(["umount", at], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            subprocess.run(["umount", "-l", at], capture_output=True)


def systems(work, binary, minio, double):
    password = os.path.join(work, "passwd-s3fs")
    with open(os.open(password, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(f"{USER}:{SECRET}\n")
    bucketfs = [binary, "mount", "s3://{bucket}", "{at}", "-f", "--endpoint-url", "{url}", "--region", "us-east-1"]
    found = []
    if double:
        found.append(System("bucketfs, Amazon's conditions", double, bucketfs))
    found.append(System("bucketfs, MinIO", minio, bucketfs))
    first = lambda *argv: subprocess.run(argv, capture_output=True, text=True).stdout.split("\n")[0]
    version = lambda *argv: (re.search(r"[vV](\d+\.\d+)", first(*argv)) or [None, ""])[1]
    if shutil.which("rclone"):
        rclone = ["rclone", "mount", "s:{bucket}", "{at}", "--config", "/dev/null", "--cache-dir", "{work}/cache"]
        rclone += ["--vfs-cache-mode", "writes", "--vfs-write-back", "0s"]
        found.append(System(f"rclone {version('rclone', 'version')}, MinIO", minio, rclone))
    if shutil.which("s3fs"):
        s3fs = ["s3fs", "{bucket}", "{at}", "-f", "-o", "url={url},use_path_request_style,passwd_file=" + password]
        found.append(System(f"s3fs {version('s3fs', '--version')}, MinIO", minio, s3fs))
    return found


# ---------------------------------------------------------------- rows


def files(prefix, count, body=b"old"):
    return [(f"{prefix}f{i:03d}", body) for i in range(count)]


def tree(directories, count):
    return [entry for d in range(directories) for entry in files(f"d{d:03d}/", count)]


def sources(count):
    """Files of a program, in directories of 50."""
    dice = random.Random(1)
    return [(f"src/d{i // 50:02d}/f{i % 50:02d}.c", dice.randbytes(dice.randrange(200, 4000)).hex().encode()) for i in range(count)]


# Only read, and so filled once for all.
MANY = tree(200, 100)
GIT = "git -c user.name=b -c user.email=b@localhost -c init.defaultBranch=main -c gc.auto=0 -c safe.directory='*'"
LS = "ls -l >/dev/null"
# What is run, what there is before, what a mount did before, what this mount did before, the command that is counted.
ROWS = [
    ("stat of a missing name, twice", files("", 200), "", "", "! stat nope; ! stat nope"),
    ("stat, three directories deep", files("a/b/c/", 10), "", "", "stat a/b/c/f007"),
    ("ls -l of 200 files", files("", 200), "", "", LS),
    ("cat of a small file", files("", 200), "", "", "cat f007"),
    ("the same after ls -l", files("", 200), "", LS, "cat f007"),
    ("the same again", files("", 200), "", "cat f007", "cat f007"),
    ("create a file, write 5 bytes", files("", 200), "", LS, "echo text >new"),
    ("20 of them", files("", 200), "", LS, "for i in {1..20}; do echo text >new$i; done"),
    ("overwrite a file", files("", 200), "", LS, "echo text >f007"),
    ("append to a small file", files("", 200), "", LS, "echo text >>f007"),
    ("append to 32 MiB", [("large", os.urandom(32 << 20))], "", LS, "echo text >>large"),
    ("rename a file", files("", 200), "", LS, "mv f007 moved"),
    ("rename a directory of 20 files", tree(1, 20), "", LS, "mv d000 moved"),
    ("rm -r of 20 files", tree(1, 20), "", "ls -lR >/dev/null", "rm -r d000"),
    ("find over 20 directories of 100", tree(20, 100), "", "", "find . -type f"),
    ("find over 20,000 keys", MANY, "", "", "find . -type f"),
    ("du -s over 20,000 keys", MANY, "", "", "du -s ."),
    ("chmod", files("", 200), "", LS, "chmod 600 f007"),
    ("touch", files("", 200), "", LS, "touch f007"),
    ("cp of a small file", files("", 200), "", LS, "cp f007 copy"),
    ("cp -r of 100 files", tree(1, 100), "", LS, "cp -r d000 copy"),
    ("mkdir", files("", 200), "", LS, "mkdir d"),
    ("rmdir", files("", 200), "", f"mkdir d; {LS}", "rmdir d"),
    ("ln -s", files("", 200), "", LS, "ln -s f007 link"),
    ("df", files("", 200), "", LS, "df ."),
    ("vim: open, change, save", files("", 200, b"line\n"), "", LS, "vim -Nu NONE -i NONE -es -c 's/line/other/' -c wq f007 </dev/null"),
    ("tar x of 500 files", [], "", "", "tar xf $WORK/src.tar --no-same-permissions --no-same-owner --touch"),
    ("git status, clean clone of 1,000 files", [], f"{GIT} clone -q --no-local $WORK/repository c; sleep 1.1; {GIT} -C c status -s", "", f"{GIT} -C c status -s"),
    ("rsync -r --size-only, 500 same files", sources(500), "", "", "rsync -r --size-only $WORK/src/src/ src/"),
]
ORDER = ["H", "L", "G", "P", "C", "D", "B", "M", "other"]


def prepare(work):
    """What commands read from outside of the mount."""
    source, repository = os.path.join(work, "src"), os.path.join(work, "repository")
    for root, count in ((source, 500), (repository, 1000)):
        for name, body in sources(count):
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(body)
    script = f"tar cf {work}/src.tar -C {source} src; cd {repository}; {GIT} init -q . && {GIT} add . && {GIT} commit -qm x"
    subprocess.run(["bash", "-ec", script], check=True, capture_output=True)


def shell(script, at, work):
    argv = ["timeout", str(LIMIT), "bash", "-ec", script]
    environment = dict(os.environ, WORK=work, HOME=work)
    done = subprocess.run(argv, cwd=at, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


def figure(counts):
    told = [f"{counts[k] if counts[k] > 1 else ''}{k}" for k in ORDER if counts[k]]
    return "+".join(told) or "0"


def measure(system, row, number, proxy, work):
    """What one row costs one system, as text."""
    name, objects, earlier, before, command = row
    bucket = f"row-{number}-{random.randrange(1 << 32):08x}"
    try:
        if objects is MANY and system.store.many:
            bucket = system.store.many
        else:
            system.store.fill(bucket, objects)
        if objects is MANY:
            system.store.many = bucket
        if earlier:
            at, process = system.mount(work, bucket, system.store.port)
            try:
                code, said = shell(earlier, at, work)
                if code:
                    print(f"  {system.name}, {name}, before: {said}", flush=True)
                    return "failed"
                time.sleep(QUIET)
            finally:
                system.unmount(at, process)
        proxy.target = system.store.port
        at, process = system.mount(work, bucket, proxy.port)
        try:
            if before:
                shell(before, at, work)
                # Not longer than programs wait between two steps: what is known must not grow old.
                proxy.settle(0.1)
            proxy.reset()
            code, said = shell(command, at, work)
            told = figure(proxy.settle())
            if code:
                print(f"  {system.name}, {name}: {said.splitlines()[:1]}", flush=True)
                return f"refused ({told})" if code == 1 else f"failed ({told})"
            return told
        finally:
            system.unmount(at, process)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        print(f"  {system.name}, {name}: {error}", flush=True)
        return "failed"


def count(binary, only):
    """The table of requests for each operation and system, as Markdown."""
    work = tempfile.mkdtemp(prefix="bucketfs-requests.", dir="/var/tmp")
    for name in ("runtime", "state", "staging"):
        os.environ[f"BUCKETFS_{name.upper()}_DIR"] = os.path.join(work, name)
    minio, port = os.path.join(HERE, "servers", "minio"), free_port()
    double = server = None
    try:
        subprocess.run([minio, "start", f"{work}/minio", str(port)], check=True, stdout=subprocess.DEVNULL)
        if server := counting_server():
            double = Store(free_port())
            server = subprocess.Popen([server, "serve", str(double.port)])
            time.sleep(1)
        prepare(work)
        proxy, all_systems = Proxy(), systems(work, binary, Store(port), double)
        table = []
        for number, row in enumerate(ROWS):
            if only not in row[0]:
                continue
            told = [measure(system, row, number, proxy, work) for system in all_systems]
            print(f"{row[0]:40s}", "   ".join(f"{s.name} {t}" for s, t in zip(all_systems, told)), flush=True)
            table.append([row[0], *told])
        return [["", *(system.name for system in all_systems)], *table]
    finally:
        if server:
            server.kill()
        subprocess.run([minio, "stop", f"{work}/minio"], stdout=subprocess.DEVNULL)
        subprocess.run(["bash", "-c", '. "$0/lib.sh"; clear_away "$1"', HERE, work])


def markdown(table):
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
