"""Writes random transactions until it is killed; prints the number of each one after its COMMIT has returned."""
import random
import sqlite3
import sys
import time

path, writer, seed, mode, rewinds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "rewinds"
rng = random.Random(seed)
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute("PRAGMA journal_mode=" + mode)
db.execute("PRAGMA synchronous=" + rng.choice(["NORMAL", "FULL"]))
db.execute("PRAGMA wal_autocheckpoint=%d" % rng.choice([0, 10, 1000]))
cache_pages = rng.choice([10, 20000])
db.execute("PRAGMA cache_size=%d" % cache_pages)
number = 0
while True:
    number += 1
    db.execute("BEGIN IMMEDIATE")
    for _ in range(rng.choice([1, 1, 1, 5, 40])):
        db.execute("INSERT INTO filler VALUES(randomblob(?))", (rng.choice([10, 500, 5000]),))
    # Behind a ROLLBACK TO that rewound frames already spilled, SQLite before 3.51 loses commits on any disk when all its processes
    # are killed; not when the node is.
    if rng.random() < 0.2 and (rewinds or cache_pages > 10):
        db.execute("SAVEPOINT s")
        db.execute("UPDATE filler SET x = randomblob(100) WHERE rowid % 3 = 0")
        db.execute("ROLLBACK TO s")
    if rng.random() < 0.2:
        db.execute("DELETE FROM filler WHERE rowid % 2 = 0")
    if rng.random() < 0.15:
        db.execute("ROLLBACK")
        number -= 1
        continue
    db.execute("INSERT INTO acked VALUES(?, ?)", (writer, number))
    db.execute("COMMIT")
    print(number, flush=True)
    time.sleep(0.001)  # SQLite's waiting is not fair: the others get their turn
