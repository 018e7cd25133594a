//! A SQLite client in a process of its own: this test binary, started again.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use parking_lot::Mutex;

/// Names the database to the child.
const DATABASE: &str = "LITEFS_TEST_CLIENT_DATABASE";
/// Starts each of the child's answers; whatever the test harness prints lacks it.
const ANSWER: &str = "answer: ";

/// A connection; the process ends when it is dropped.
pub(super) struct Client {
    child: Mutex<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Client {
    pub(super) fn open(database: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "database::tests::client::process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DATABASE, database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child: Mutex::new((child, stdin, stdout)) }
    }

    /// Runs statements; the first column of the last row, or SQLite's message.
    pub(super) fn run(&self, sql: &str) -> Result<String, String> {
        let mut child = self.child.lock();
        writeln!(child.1, "{}", sql.replace('\n', " ")).expect("the client runs");
        let mut line = String::new();
        while !line.starts_with(ANSWER) {
            line.clear();
            assert!(child.2.read_line(&mut line).expect("the client runs") > 0, "the client ended");
        }
        let answer = line[ANSWER.len()..].trim_end_matches('\n');
        match answer.split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            Some((_, message)) => Err(message.to_owned()),
            None => panic!("not an answer: {line:?}"),
        }
    }

    /// The database as this client sees it, byte by byte.
    pub(super) fn image(&self) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        self.run(&format!(".image {}", file.path().display())).expect("serialises");
        std::fs::read(file.path()).expect("image")
    }

    /// `kill -9`.
    pub(super) fn kill(&self) {
        let mut child = self.child.lock();
        child.0.kill().expect("kills");
        child.0.wait().expect("ends");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.0.kill();
        let _ = child.0.wait();
    }
}

/// Every page as the connection's next read transaction sees it.
pub(super) fn image(connection: &rusqlite::Connection) -> Vec<u8> {
    let mut len = 0;
    // SAFETY: the handle is that of an open connection, the name is NUL-terminated; SQLite writes `len` and returns memory of
    // that length, or NULL, which is ours to free.
    unsafe {
        let bytes = rusqlite::ffi::sqlite3_serialize(connection.handle(), c"main".as_ptr(), &raw mut len, 0);
        assert!(!bytes.is_null(), "serialises");
        let image = std::slice::from_raw_parts(bytes, usize::try_from(len).expect("length")).to_vec();
        rusqlite::ffi::sqlite3_free(bytes.cast());
        image
    }
}

fn answer(connection: &rusqlite::Connection, line: &str) -> Result<String, String> {
    if let Some(path) = line.strip_prefix(".image ") {
        return std::fs::write(path, image(connection)).map(|()| String::new()).map_err(|error| error.to_string());
    }
    let run = || -> rusqlite::Result<String> {
        let mut last = String::new();
        for sql in line.split(';').filter(|sql| !sql.trim().is_empty()) {
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if row.as_ref().column_count() == 0 {
                    continue;
                }
                last = match row.get_ref(0)? {
                    rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                    rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                    other => format!("{other:?}"),
                };
            }
        }
        Ok(last)
    };
    run().map_err(|error| error.to_string())
}

/// Not a test: what [`Client`] runs.
#[test]
#[ignore = "started by the tests as a client"]
fn process() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let connection = rusqlite::Connection::open(path).expect("opens");
    connection.busy_timeout(std::time::Duration::ZERO).expect("no timeout");
    for line in std::io::stdin().lines() {
        let answer = match answer(&connection, &line.expect("line")) {
            Ok(value) => format!("ok {value}"),
            Err(message) => format!("error {message}"),
        };
        println!("\n{ANSWER}{answer}");
    }
}
