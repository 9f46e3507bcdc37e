"""Races of documents: mounts that edit fields of one document, and another program that does so without a mount; then the same while
the server is killed again and again."""

import errno
import glob
import json
import os
import random
import signal
import subprocess
import sys
import time

from racing import HERE, FORK, Attempt, Mount, Place, begin, code, expect, get, together, write_all

sys.path.insert(0, os.path.join(HERE, "..", "tests", "documents"))
from client import client  # noqa: E402

# How often a mount, or another program, does what a case is about.
TRIES = 12


def opened(path):
    """A handle, and the document that it reads: opened again where that version has gone meanwhile."""
    while True:
        fd = os.open(path, os.O_RDWR)
        try:
            return fd, json.loads(os.pread(fd, 1 << 16, 0))
        except OSError as error:
            os.close(fd)
            if error.errno != errno.ESTALE:
                raise


def edit(path, change):
    """One edit of a document: read, changed, written in place."""
    fd, document = opened(path)
    change(document)
    attempt = Attempt(json.dumps(document).encode())
    os.ftruncate(fd, 0)
    os.pwrite(fd, attempt.data, 0)
    return attempt.close(fd)


def increased(value):
    """A counter's next value, of the type that it has."""
    return str(int(value) + 1) if isinstance(value, str) else value + 1


class Documents:
    """The documents of one round, as another program sees them, and what was kept of those who lost."""

    def __init__(self, r):
        self.r, self.url, self.collection = r, r.place.url, r.name
        self.strings = self.url.startswith("redis:")
        self.before = self.in_state()

    def client(self):
        return client(self.url)

    def value(self, number):
        return str(number) if self.strings else number

    def seed(self, name, document):
        self.client().put(self.collection, name, document)
        for mount in self.r.writers:
            self.r.await_name(self.r.on(mount, name + ".json"))

    def found(self, name):
        return self.client().get(self.collection, name)

    def in_state(self):
        kept = glob.glob(os.path.join(self.r.place.work, "state", "**", "kept", "unsent", "*"), recursive=True)
        # Beside each is a note.
        return {path for path in kept if os.path.isfile(path) and not (path.endswith(".json") and path[:-5] in kept)}

    def kept(self):
        """Texts beside the documents, or in the state directories of the mounts."""
        texts = [get(path) for path in self.in_state() - self.before]
        with self.r.place.fresh() as root:
            directory = os.path.join(root, self.r.name)
            texts += [get(os.path.join(directory, name)) for name in os.listdir(directory) if ".conflict-" in name]
        return texts

    def all_kept(self, attempts):
        texts = self.kept()
        lost = [a.data for a in attempts if a.data not in texts]
        expect(not lost, "refused and not kept:", lost)


def counter(r):
    """A counter that mounts and another program increment is the number of increments that were acknowledged."""
    documents = Documents(r)
    documents.seed("counter", {"n": documents.value(0), "other": "x"})

    def job(mount):
        def run(meet):
            attempts = []
            meet()
            for _ in range(TRIES):
                attempts.append(edit(r.on(mount, "counter.json"), lambda d: d.update(n=increased(d["n"]), **{mount.name: str(len(attempts))})))
                time.sleep(random.uniform(0, 0.01))
            return attempts

        return run

    def other(meet):
        store = documents.client()
        meet()
        for _ in range(TRIES):
            store.add(documents.collection, "counter", "n", 1)
            time.sleep(random.uniform(0, 0.01))

    answers = together([*map(job, r.writers), other])
    attempts = [a for answer in answers[:-1] for a in answer]
    told = {a.told for a in attempts}
    expect(told <= {"accepted", "ESTALE"}, "edits were told", told)
    accepted = sum(a.accepted for a in attempts)
    last = documents.found("counter")
    expect(int(last["n"]) == accepted + TRIES, "the counter is", last, "after", accepted, "accepted edits and", TRIES, "increments")
    refused = [a for a in attempts if a.refused and a.data]
    documents.all_kept(refused)
    return f"{accepted} accepted + {TRIES} of another program = {int(last['n'])}; {len(refused)} ESTALE, all kept"


def fields(r):
    """Who changes a field that nobody else changes is never refused, and no change is lost."""
    documents = Documents(r)
    names = [mount.name for mount in r.writers]
    documents.seed("doc", {name: "0" for name in (*names, "theirs", "rest")})

    def job(mount):
        def run(meet):
            attempts = []
            meet()
            for turn in range(1, TRIES + 1):
                attempts.append(edit(r.on(mount, "doc.json"), lambda d: d.update({mount.name: str(turn)})))
                time.sleep(random.uniform(0, 0.01))
            return attempts

        return run

    def other(meet):
        store = documents.client()
        meet()
        for turn in range(1, TRIES + 1):
            store.set(documents.collection, "doc", "theirs", str(turn))
            time.sleep(random.uniform(0, 0.01))

    answers = together([*map(job, r.writers), other])
    told = {a.told for answer in answers[:-1] for a in answer}
    expect(told == {"accepted"}, "edits were told", told)
    last = documents.found("doc")
    expect(last == {**{name: str(TRIES) for name in (*names, "theirs")}, "rest": "0"}, "the document is", last)
    expect(not documents.kept(), "there are conflict files")
    return f"{TRIES} edits each of {len(names) + 1} fields, none refused, none lost"


def one_winner(documents, names, answers, refusal, wanted):
    """Each document is what its one winner made of it; the texts that were refused."""
    lost = []
    for name in names:
        made = [answer[name] for answer in answers]
        expect(all(a.told in ("accepted", refusal) for _, a in made), name, "told", [a.told for _, a in made])
        winners = [who for who, a in made if a.accepted]
        expect(len(winners) == 1, name, "was won by", winners)
        expect(documents.found(name) == wanted(winners[0]), name, "is", documents.found(name), "and was won by", winners)
        lost += [a for _, a in made if a.refused and a.data]
    return lost


def clash(r):
    """Of those who change the same field of one version one wins, and the others' texts are kept."""
    documents = Documents(r)
    names = [f"d{i}" for i in range(4)]
    for name in names:
        documents.seed(name, {"a": "0", "b": "0"})

    def job(mount):
        def run(meet):
            done = {}
            for name in names:
                fd, document = opened(r.on(mount, name + ".json"))
                meet()
                attempt = Attempt(json.dumps({**document, "a": mount.name}).encode())
                os.ftruncate(fd, 0)
                write_all(fd, attempt.data)
                meet()
                done[name] = (mount.name, attempt.close(fd))
            return done

        return run

    def other(meet):
        store, done = documents.client(), {}
        for name in names:
            meet()
            meet()
            won = store.swap(documents.collection, name, "a", "0", "theirs")
            done[name] = ("theirs", Attempt(b"", "accepted" if won else "ESTALE"))
        return done

    answers = together([*map(job, r.writers), other])
    lost = one_winner(documents, names, answers, "ESTALE", lambda winner: {"a": winner, "b": "0"})
    documents.all_kept(lost)
    expect(len(documents.kept()) == len(lost), "kept are", len(documents.kept()), "of", len(lost))
    return f"{len(names)} documents, {len(names)} winners, {len(lost)} texts kept"


def created(r):
    """O_EXCL, and another program's way to create a document, have one winner for each name."""
    documents = Documents(r)
    names = [f"x{i}" for i in range(6)]
    documents.client().put(documents.collection, "there", {"a": "0"})

    def job(mount):
        def run(meet):
            done = {}
            for name in names:
                attempt = Attempt(json.dumps({"by": mount.name}).encode())
                meet()
                try:
                    fd = os.open(r.on(mount, name + ".json"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    attempt.told, attempt.data = "EEXIST", b""
                else:
                    write_all(fd, attempt.data)
                    attempt.close(fd)
                done[name] = (mount.name, attempt)
            return done

        return run

    def other(meet):
        store, done = documents.client(), {}
        for name in names:
            meet()
            time.sleep(random.uniform(0, 0.005))
            won = store.create(documents.collection, name, {"by": "theirs"})
            done[name] = ("theirs", Attempt(b"", "accepted" if won else "EEXIST"))
        return done

    answers = together([*map(job, r.writers), other])
    lost = one_winner(documents, names, answers, "EEXIST", lambda winner: {"by": winner})
    documents.all_kept(lost)
    return f"{len(names)} names, {len(names)} winners, {len(lost)} texts kept"


def prepare(url):
    """The database is there."""
    store = client(url)
    store.put("begin", "x", {"a": "0"})
    store.drop("begin")


CASES = {f.__name__: f for f in (counter, fields, clash, created)}


# ---------------------------------------------------------------- servers that are killed


class Killed:
    """A server of scripts/servers, which keeps what it has acknowledged."""

    KINDS = {
        "redis": ({"REDIS_ARGS": "--appendfsync always"}, "redis://127.0.0.1:{port}/0?separator=:"),
        "mongodb": ({"STORE": "h2"}, "mongodb://127.0.0.1:{port}/races"),
    }

    def __init__(self, kind):
        environment, url = self.KINDS[kind]
        self.script = os.path.join(HERE, "servers", {"mongodb": "mongo"}.get(kind, kind))
        self.environment = {**os.environ, **environment}
        self.port = Place.shell("free_port")
        self.place = Place(url.format(port=self.port))
        self.dir = os.path.join(self.place.work, "server")
        self.start()

    def start(self):
        done = subprocess.run([self.script, "start", self.dir, self.port], env=self.environment, capture_output=True, text=True)
        expect(done.returncode == 0, "the server does not start:", done.stderr)

    def again(self):
        """Kills it at once, and starts it on what it has left."""
        with open(os.path.join(self.dir, "pid")) as file:
            pid = int(file.read().split()[0])
        os.kill(pid, signal.SIGKILL)
        while os.path.exists(f"/proc/{pid}") and not open(f"/proc/{pid}/stat").read().rpartition(")")[2].startswith(" Z"):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        self.start()

    def stop(self):
        subprocess.run([self.script, "stop", self.dir], capture_output=True)


def restarted(server, mounts, number, kills=2):
    """Mounts and another program edit and create documents while the server is killed: whatever they were told of as done is there."""
    place, collection, names = server.place, f"k{number}", [f"d{i}" for i in range(5)]
    store = client(place.url)
    for name in names:
        store.put(collection, name, {who: "0" for who in (*(m.name for m in mounts), "theirs")})
    for mount in mounts:
        while not os.path.exists(os.path.join(mount.dir, collection, "d4.json")):
            time.sleep(0.05)
    stop = FORK.Event()

    def job(mount):
        def run():
            edits, made, told, turn = {}, [], {}, 0
            while not stop.is_set():
                turn += 1
                name = names[turn % len(names)]
                try:
                    attempt = edit(os.path.join(mount.dir, collection, name + ".json"), lambda d: d.update({mount.name: str(turn)}))
                except (OSError, ValueError) as error:
                    attempt = Attempt(b"", code(error) if isinstance(error, OSError) else str(error))
                told[attempt.told] = told.get(attempt.told, 0) + 1
                if attempt.accepted:
                    edits[name] = turn
                if turn % 5:
                    continue
                try:
                    fd = os.open(os.path.join(mount.dir, collection, f"{mount.name}{turn}.json"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                    write_all(fd, b'{"turn": "%d"}' % turn)
                    if Attempt(b"").close(fd).accepted:
                        made.append(turn)
                except OSError as error:
                    told[code(error)] = told.get(code(error), 0) + 1
            return mount.name, edits, made, told

        return run

    def other():
        edits, turn, failed, store = {}, 0, 0, client(place.url)
        while not stop.is_set():
            turn += 1
            name = names[turn % len(names)]
            try:
                store.set(collection, name, "theirs", str(turn))
                edits[name] = turn
            except Exception:  # whatever its client calls a server that is away
                failed += 1
                time.sleep(0.05)
        return "theirs", edits, [], {"accepted": turn - failed, "refused": failed}

    answers = [begin(run) for run in (*map(job, mounts), other)]
    try:
        for _ in range(kills):
            time.sleep(random.uniform(0.7, 1.3))
            server.again()
        time.sleep(1.5)
    finally:
        stop.set()
        answers = [answer() for answer in answers]
    end = time.monotonic() + 60
    while any(mount.status()["fs"]["dirty_files"] for mount in mounts):
        expect(time.monotonic() < end, "what was not acknowledged is not sent")
        time.sleep(0.1)
    store = client(place.url)
    edited = created = 0
    for who, edits, made, told in answers:
        expect(edits and set(edits) == set(names), who, "was acknowledged", edits, "and told", told)
        for name, turn in edits.items():
            found = int(store.get(collection, name)[who])
            expect(found >= turn, f"{name} has {found} of {who}, and {turn} was acknowledged")
        for turn in made:
            found = store.get(collection, f"{who}{turn}")
            expect(found == {"turn": str(turn)}, f"{who}{turn} is {found}, and its creation was acknowledged")
        edited, created = edited + told["accepted"], created + len(made)
    said = "; ".join(f"{who} told {told}" for who, _, _, told in answers)
    return f"{kills} kills, {edited} edits and {created} creations acknowledged, none lost ({said})"


def restarts(kind, rounds):
    """Gives how many rounds passed and failed."""
    passed = failed = 0
    server = Killed(kind)
    try:
        mounts = [Mount(server.place, name) for name in ("A", "B")]
        for number in range(1, rounds + 1):
            began = time.monotonic()
            try:
                said = restarted(server, mounts, number)
                passed += 1
                print(f"round {number:2d} restarts   {time.monotonic() - began:5.1f} s  {said}", flush=True)
            except Exception as error:
                failed += 1
                print(f"round {number:2d} restarts   FAIL: {type(error).__name__}: {error}", flush=True)
        for mount in mounts:
            mount.leave()
    except Exception as error:
        failed += 1
        print(f"FAIL: {error}")
    finally:
        server.stop()
        server.place.clear()
    return passed, failed
