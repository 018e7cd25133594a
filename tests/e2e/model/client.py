"""One process of the model test: a writer or a reader of a database.

Every transaction of a writer leaves in `state` how many there were and a digest of all other rows, so that whoever looks at
the database at any moment (a reader here or on a replica, the copy made of the records) can tell whether it is one that a
writer saw.
"""
import random
import sqlite3
import sys
import time
import zlib


def digest(db):
    sum = 0
    for row in db.execute("SELECT id, x FROM t ORDER BY id"):
        sum = zlib.crc32(b"%d:%b;" % row, sum)
    for row in db.execute("SELECT writer, number FROM acked ORDER BY writer"):
        sum = zlib.crc32(b"%d=%d;" % row, sum)
    return sum


def connect(path):
    return sqlite3.connect(path, timeout=60, isolation_level=None)


def changes(db, rng, may_rewind, may_fail):
    for _ in range(rng.choice([1, 1, 1, 5, 40])):
        db.execute("INSERT INTO t(x) VALUES(randomblob(?))", (rng.choice([10, 500, 5000]),))
    if rng.random() < 0.02:
        db.execute("INSERT INTO t(x) VALUES(randomblob(6000000))")
    if rng.random() < 0.3:
        db.execute("UPDATE t SET x = randomblob(200) WHERE id % 5 = ?", (rng.randrange(5),))
    if may_rewind and rng.random() < 0.2:
        db.execute("SAVEPOINT s")
        db.execute("UPDATE t SET x = randomblob(100) WHERE id % 3 = 0")
        if rng.random() < 0.5:
            db.execute("SAVEPOINT inner_")
            db.execute("DELETE FROM t WHERE id % 4 = 0")
            db.execute("RELEASE inner_")
        db.execute("ROLLBACK TO s" if rng.random() < 0.7 else "RELEASE s")
    if may_fail and rng.random() < 0.1:
        try:
            db.execute("INSERT INTO acked SELECT 1000000, 1 FROM t UNION ALL SELECT 1000000, 2")
        except sqlite3.IntegrityError:
            pass
    if rng.random() < 0.2 or db.execute("SELECT total(length(x)) FROM t").fetchone()[0] > 300000:
        db.execute("DELETE FROM t WHERE id % 2 = ?", (rng.randrange(2),))
        db.execute("DELETE FROM t WHERE length(x) > 10000")


def write(path, writer, seed, options, stop):
    """Prints the number of each transaction after its COMMIT has returned."""
    rng = random.Random(seed)
    db = connect(path)
    if "exclusive" in options:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
    mode = options[0]
    while db.execute("PRAGMA journal_mode=" + mode).fetchone()[0] != mode.lower():
        time.sleep(0.01)
    db.execute("PRAGMA synchronous=" + rng.choice(["OFF", "NORMAL", "FULL"]))
    db.execute("PRAGMA wal_autocheckpoint=%d" % rng.choice([0, 1, 10, 1000]))
    cache_pages = rng.choice([10, 10, 20000])
    db.execute("PRAGMA cache_size=%d" % cache_pages)
    if rng.random() < 0.2:
        db.execute("PRAGMA mmap_size=100000000")
    # Without a journal nothing can be taken back.
    may_fail = mode != "OFF"
    # Behind a ROLLBACK TO that rewound frames already spilled, SQLite before 3.51 loses commits on any disk when all its
    # processes are killed; not when the node is.
    may_rewind = may_fail and ("rewinds" in options or cache_pages > 10)
    number = 0
    while not stop():
        if rng.random() < 0.02:
            db.execute(rng.choice(["PRAGMA incremental_vacuum(3)", "PRAGMA wal_checkpoint"])).fetchall()
        if rng.random() < 0.01 and may_fail:
            try:
                db.execute("VACUUM")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
        db.execute("BEGIN IMMEDIATE")
        changes(db, rng, may_rewind, may_fail)
        if may_fail and rng.random() < 0.15:
            db.execute("ROLLBACK")
            continue
        number += 1
        db.execute("INSERT OR REPLACE INTO acked VALUES(?, ?)", (writer, number))
        db.execute("UPDATE state SET serial = serial + 1, digest = ?", (digest(db),))
        db.execute("COMMIT")
        print(number, flush=True)
        time.sleep(0.001)  # SQLite's waiting is not fair: the others get their turn


def read(path, seed, stop):
    """Each snapshot must be one that a writer saw, stay the same, and be no older than the one before."""
    rng = random.Random(seed)
    db = connect(path)
    if rng.random() < 0.3:
        db.execute("PRAGMA mmap_size=100000000")
    last = -1
    while not stop():
        db.execute("BEGIN")
        serial, told = db.execute("SELECT serial, digest FROM state").fetchone()
        assert serial >= last, "serial %d after %d" % (serial, last)
        assert digest(db) == told, "serial %d has another digest than its writer saw" % serial
        if rng.random() < 0.1:
            time.sleep(rng.random() / 3)
        assert digest(db) == told, "the snapshot of serial %d changed" % serial
        if rng.random() < 0.05:
            check = db.execute("PRAGMA integrity_check").fetchall()
            assert check == [("ok",)], "serial %d is damaged: %s" % (serial, check)
        db.execute("COMMIT")
        last = serial
        time.sleep(rng.random() / 50)


def main():
    role, path, who, seed, options, stop_file = sys.argv[1:7]

    def stop():
        try:
            open(stop_file).close()
            return True
        except FileNotFoundError:
            return False

    try:
        if role == "write":
            write(path, int(who), int(seed), options.split(","), stop)
        else:
            read(path, int(seed), stop)
    except AssertionError as error:
        print("VIOLATION", error, flush=True)
    except sqlite3.Error as error:
        # Of a node that was killed.
        print("ENDED", error, flush=True)
        if "malformed" in str(error) or "not a database" in str(error):
            print("VIOLATION", error, flush=True)


main()
