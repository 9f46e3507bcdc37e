#!/usr/bin/python3
"""What another program sees and does in a store of documents: redis-cli for Redis, PyMongo for MongoDB, and the control
port of the double of RethinkDB.

  client.py URL get|exact|put|set|add|remove|names|drop COLLECTION [NAME [ARGUMENT...]]
  client.py URL fill COLLECTION COUNT      documents d1, d2, ... whose fields n are 1, 2, ...
  client.py URL sum COLLECTION             of the fields n

Documents are printed as JSON on one line, in the order of their names and without the key; a missing one as `none`. `exact`
tells types too, and of Redis the kind and whether the key has a time to live. `put` takes what `exact` prints. With `by-json` at the end, NAME is a key as
JSON. RETHINKDB_CONTROL is HOST:PORT of the control port.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.parse


def line(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Unanswered(Exception):
    """The store did not answer, or refused."""


class Redis:
    """A document is a hash; a collection is what the keys begin with."""

    def __init__(self, url):
        self.url = url.partition("?")[0]

    def ask(self, *words):
        done = subprocess.run(["redis-cli", "-u", self.url, "--json", *words], capture_output=True, text=True)
        if done.returncode or done.stderr:
            raise Unanswered(f"redis-cli {words}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    @staticmethod
    def key(collection, name):
        return f"{collection}:{name}"

    def get(self, collection, name):
        return self.ask("hgetall", self.key(collection, name)) or None

    def exact(self, collection, name):
        key = self.key(collection, name)
        return {"kind": self.ask("type", key), "lives": self.ask("ttl", key) > 0, "fields": self.get(collection, name)}

    def put(self, collection, name, document):
        key = self.key(collection, name)
        fields = document["fields"] if isinstance(document.get("fields"), dict) else document
        self.ask("del", key)
        self.ask("hset", key, *[word for field in fields.items() for word in field])
        if document.get("lives") is True:
            self.ask("expire", key, "10000")

    def set(self, collection, name, field, value):
        self.ask("hset", self.key(collection, name), field, value)

    def add(self, collection, name, field, value):
        self.ask("hincrby", self.key(collection, name), field, str(value))

    def swap(self, collection, name, field, old, new):
        script = "return redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) + 1 or 0"
        return self.ask("eval", script, "1", self.key(collection, name), field, old, new) > 0

    def create(self, collection, name, document):
        script = "return redis.call('EXISTS', KEYS[1]) == 0 and redis.call('HSET', KEYS[1], unpack(ARGV)) or 0"
        return self.ask("eval", script, "1", self.key(collection, name), *[word for field in document.items() for word in field]) > 0

    def remove(self, collection, name):
        self.ask("del", self.key(collection, name))

    def names(self, collection):
        begin = collection + ":"
        # The key of that name alone is what mkdir made.
        return [key[len(begin) :] for key in self.ask("keys", begin + "*") if key != begin]

    def fill(self, collection, count):
        script = "for n = 1, ARGV[2] do redis.call('HSET', ARGV[1] .. ':d' .. n, 'n', tostring(n), 'text', 'line ' .. n) end"
        self.ask("eval", script, "0", collection, str(count))

    def drop(self, collection):
        keys = self.ask("keys", collection + ":*")
        if keys:
            self.ask("del", *keys)


class Mongo:
    def __init__(self, url):
        import bson.json_util
        import pymongo

        self.json, self.canonical = bson.json_util, bson.json_util.CANONICAL_JSON_OPTIONS
        self.database = pymongo.MongoClient(url, serverSelectionTimeoutMS=10000).get_default_database()

    def find(self, collection, name):
        found = self.database[collection].find_one({"_id": name})
        if found:
            del found["_id"]
        return found

    def get(self, collection, name):
        found = self.find(collection, name)
        return found and json.loads(self.json.dumps(found, json_options=self.json.RELAXED_JSON_OPTIONS))

    def exact(self, collection, name):
        found = self.find(collection, name)
        return found and json.loads(self.json.dumps(found, json_options=self.canonical))

    def put(self, collection, name, document):
        document = self.json.loads(json.dumps(document), json_options=self.canonical)
        self.database[collection].replace_one({"_id": name}, document, upsert=True)

    def set(self, collection, name, field, value):
        self.database[collection].update_one({"_id": name}, {"$set": {field: value}})

    def add(self, collection, name, field, value):
        self.database[collection].update_one({"_id": name}, {"$inc": {field: value}})

    def swap(self, collection, name, field, old, new):
        return self.database[collection].update_one({"_id": name, field: old}, {"$set": {field: new}}).matched_count > 0

    def create(self, collection, name, document):
        import pymongo.errors

        try:
            self.database[collection].insert_one({"_id": name, **document})
            return True
        except pymongo.errors.DuplicateKeyError:
            return False

    def remove(self, collection, name):
        self.database[collection].delete_one({"_id": name})

    def fill(self, collection, count):
        numbers = range(1, count + 1)
        self.database[collection].insert_many([{"_id": f"d{n}", "n": str(n), "text": f"line {n}"} for n in numbers])

    def names(self, collection):
        return [str(found["_id"]) for found in self.database[collection].find({}, {"_id": 1})]

    def drop(self, collection):
        self.database.drop_collection(collection)


class Rethink:
    def __init__(self, url):
        self.database = urllib.parse.urlsplit(url).path.strip("/")
        host, _, port = os.environ["RETHINKDB_CONTROL"].partition(":")
        self.control = socket.create_connection((host, int(port))).makefile("rw")

    def ask(self, verb, collection, *words):
        self.control.write(json.dumps([verb, self.database, collection, *words]) + "\n")
        self.control.flush()
        told = json.loads(self.control.readline())
        if "error" in told:
            raise Unanswered(f"the double says: {told['error']}")
        return told["told"]

    def get(self, collection, name):
        found = self.ask("get", collection, name)
        if found:
            del found["id"]
        return found

    exact = get

    def put(self, collection, name, document):
        self.ask("put", collection, name, document)

    def set(self, collection, name, field, value):
        self.ask("set", collection, name, field, value)

    def add(self, collection, name, field, value):
        self.ask("add", collection, name, field, value)

    def swap(self, collection, name, field, old, new):
        return self.ask("swap", collection, name, field, old, new)

    def create(self, collection, name, document):
        return self.ask("create", collection, name, document)

    def remove(self, collection, name):
        self.ask("remove", collection, name)

    def fill(self, collection, count):
        for n in range(1, count + 1):
            self.put(collection, f"d{n}", {"n": str(n), "text": f"line {n}"})

    def names(self, collection):
        return self.ask("names", collection)

    def drop(self, collection):
        self.ask("drop", collection)


CLIENTS = {"redis": Redis, "mongodb": Mongo, "rethinkdb": Rethink}


def client(url):
    return CLIENTS[url.partition(":")[0]](url)


def main(url, verb, collection, name=None, *words):
    store = client(url)
    if words[-1:] == ("by-json",):
        name, words = json.loads(name), words[:-1]
    if verb in ("get", "exact"):
        found = getattr(store, verb)(collection, name)
        print("none" if found is None else line(found))
    elif verb == "put":
        store.put(collection, name, json.loads(words[0]))
    elif verb == "set":
        store.set(collection, name, words[0], words[1])
    elif verb == "add":
        store.add(collection, name, words[0], int(words[1]))
    elif verb == "names":
        print("\n".join(sorted(store.names(collection))))
    elif verb == "fill":
        store.fill(collection, int(name))
    elif verb == "sum":
        print(sum(int(store.get(collection, each)["n"]) for each in store.names(collection)))
    elif verb == "remove":
        store.remove(collection, name)
    elif verb == "drop":
        store.drop(collection)
    else:
        sys.exit(f"client.py knows no {verb}")


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    # PyMongo's threads take half a second to end.
    os._exit(0)
