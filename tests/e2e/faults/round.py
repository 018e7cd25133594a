"""One round of everything a client can do; prints `db number ok` for each commit that was acknowledged, else `db number error why`."""
import os
import sqlite3
import sys
import urllib.request

mount, url, number = sys.argv[1], sys.argv[2], int(sys.argv[3])


def say(*words):
    print(*words, flush=True)


def attempt(name, what, action):
    try:
        action()
        say(name, what, "ok")
        return True
    except (sqlite3.Error, OSError) as error:
        say(name, what, "error", str(error).replace("\n", " "))
        return False


def connect(name):
    db = sqlite3.connect(os.path.join(mount, name), timeout=10, isolation_level=None)
    # When the node was killed this may be a file of the directory below.
    if not os.path.ismount(mount):
        raise OSError("the mount is gone")
    db.execute("PRAGMA synchronous=FULL")
    return db


def commit(db, name, bytes=10):
    global number
    number += 1

    def action():
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE r SET x = NULL WHERE length(x) > 1000")
            db.execute("INSERT INTO r VALUES(?, randomblob(?))", (number, bytes))
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                try:
                    db.execute("ROLLBACK")
                except sqlite3.Error:
                    pass
            raise

    return attempt(name, number, action)


def mode(db, name, wanted):
    def action():
        got = db.execute("PRAGMA journal_mode=" + wanted).fetchone()[0]
        if got != wanted:
            raise sqlite3.OperationalError("journal mode is " + got)

    return attempt(name, "mode-" + wanted, action)


def with_db(name, action):
    def run():
        db = connect(name)
        try:
            action(db)
        finally:
            db.close()

    attempt(name, "connection", run)


def wal(db):
    mode(db, "w.db", "wal")
    commit(db, "w.db")
    for _ in range(3):
        # The node makes room in the WAL ahead of them.
        commit(db, "w.db", 60000)
    commit(db, "w.db", 5000000)
    commit(db, "w.db")
    attempt("w.db", "shm-size", lambda: same_size(os.path.join(mount, "w.db-shm")))


def same_size(path):
    """A program that sets the size of the shared memory, to what it is."""
    os.truncate(path, os.stat(path).st_size)


def rollback(db):
    for name in ["delete", "truncate", "persist", "memory"]:
        mode(db, "d.db", name)
        commit(db, "d.db")
    mode(db, "d.db", "delete")
    commit(db, "d.db", 5000000)
    commit(db, "d.db")


def switch(db):
    mode(db, "w.db", "delete")
    mode(db, "w.db", "wal")
    commit(db, "w.db")


def new(db):
    db.execute("PRAGMA journal_mode=" + ["wal", "delete"][number % 2])
    db.execute("CREATE TABLE r(n INTEGER PRIMARY KEY, x)")


def unsynced(db):
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE IF NOT EXISTS r(n INTEGER PRIMARY KEY, x)")
    db.execute("INSERT INTO r(x) VALUES(randomblob(5000))")


def http(what, **request):
    attempt("http", what, lambda: urllib.request.urlopen(urllib.request.Request(url + what, **request), timeout=30).read())


with_db("w.db", wal)
with_db("d.db", rollback)
with_db("w.db", switch)
name = "n%d.db" % number
with_db(name, new)
attempt(name, "unlink", lambda: os.unlink(os.path.join(mount, name)))
with_db("o.db", unsynced)
attempt("o.db", "unlink", lambda: os.unlink(os.path.join(mount, "o.db")))
http("/export?name=w.db")
http("/export?name=d.db")
image = sqlite3.connect(":memory:")
image.executescript("CREATE TABLE r(n INTEGER PRIMARY KEY, x); INSERT INTO r VALUES(%d, randomblob(100000))" % number)
http("/import?name=i.db", data=image.serialize() if hasattr(image, "serialize") else b"", method="POST")
say("round end ok")
