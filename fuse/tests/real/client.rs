//! A rusqlite client in a process of its own: this test binary, started again. The engine opens and closes the inodes that
//! clients lock, and POSIX locks of a process go with any descriptor it closes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use parking_lot::Mutex;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;

/// Names the database to the child.
const DATABASE: &str = "LITEFS_TEST_DATABASE";
/// Starts each of the child's answers; whatever the test harness prints lacks it.
const ANSWER: &str = "answer: ";

/// A connection; the process ends when it is dropped.
pub struct Client(Mutex<(Child, Option<ChildStdin>, BufReader<ChildStdout>)>);

impl Client {
    pub fn open(database: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "client::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DATABASE, database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a client");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let client = Self(Mutex::new((child, stdin, BufReader::new(stdout))));
        client.run("PRAGMA busy_timeout=60000").expect("open a database");
        client
    }

    /// Runs statements; the first column of the last row, or SQLite's message.
    pub fn run(&self, sql: &str) -> Result<String, String> {
        let mut child = self.0.lock();
        writeln!(child.1.as_mut().expect("running"), "{}", sql.replace('\n', " ")).expect("the client runs");
        let answer = loop {
            let mut line = String::new();
            assert!(child.2.read_line(&mut line).expect("the client runs") > 0, "the client ended");
            // The test harness begins a line of its own.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                break answer.trim_end_matches('\n').to_owned();
            }
        };
        match answer.split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            Some((_, message)) => Err(message.to_owned()),
            None => panic!("not an answer: {answer:?}"),
        }
    }

    /// Runs statements.
    pub fn execute(&self, sql: &str) -> Result<(), String> {
        self.run(sql).map(drop)
    }

    /// The only value of a query.
    pub fn text(&self, sql: &str) -> String {
        self.run(sql).unwrap_or_else(|message| panic!("{sql}: {message}"))
    }

    /// The only value of a query, a number.
    pub fn number(&self, sql: &str) -> i64 {
        self.text(sql).parse().expect("a number")
    }
}

impl Drop for Client {
    /// Closes the connection as a client does.
    fn drop(&mut self) {
        let child = self.0.get_mut();
        drop(child.1.take());
        let _ = child.0.wait();
    }
}

fn answer(connection: &rusqlite::Connection, sql: &str) -> rusqlite::Result<String> {
    let mut batch = rusqlite::Batch::new(connection, sql);
    let mut last = String::new();
    while let Some(mut statement) = batch.next()? {
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            last = match row.get_ref(0)? {
                ValueRef::Null => String::new(),
                ValueRef::Integer(value) => value.to_string(),
                ValueRef::Real(value) => value.to_string(),
                ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).replace('\n', " "),
            };
        }
    }
    Ok(last)
}

/// Run by [`Client`] in a process of its own.
#[test]
#[ignore = "run by other tests as a client"]
fn process() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let connection = rusqlite::Connection::open(path).expect("open");
    for line in std::io::stdin().lines() {
        match answer(&connection, &line.expect("a line")) {
            Ok(value) => println!("{ANSWER}ok {value}"),
            Err(error) => println!("{ANSWER}error {}", error.to_string().replace('\n', " ")),
        }
    }
}
