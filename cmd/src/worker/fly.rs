//! On Fly.io the node tells the platform its role as metadata of its machine, as LiteFS does (COMPAT §7).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use litefs_replication::roles::RoleState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Where the platform answers.
const SOCKET: &str = "/.fly/api";
/// How long one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Between attempts.
const RETRY: Duration = Duration::from_secs(5);
/// The answer is only looked at for its status.
const ANSWER_BYTES_MAX: u64 = 4096;

/// This machine, as the platform names it.
#[derive(Debug, Clone)]
pub struct Machine {
    socket: PathBuf,
    app: String,
    id: String,
}

impl Machine {
    /// `None` when this is not a machine of Fly.io.
    pub fn from_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let app = variable("FLY_APP_NAME")?;
        let id = variable("FLY_MACHINE_ID").or_else(|| variable("FLY_ALLOC_ID"))?;
        Some(Self { socket: SOCKET.into(), app, id })
    }

    /// Reports every change of the role until the node ends. A platform that does not answer is asked again with the role as it is then.
    pub async fn report(self, mut role: watch::Receiver<RoleState>) {
        let (mut told, mut failing) = (None, false);
        loop {
            let now = if role.borrow_and_update().is_primary() { "primary" } else { "replica" };
            if told != Some(now) {
                match tokio::time::timeout(REQUEST_MAX, self.tell(now)).await.map_err(anyhow::Error::from).flatten() {
                    Ok(()) => (told, failing) = (Some(now), false),
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(error = format!("{error:#}"), "report the role to Fly.io; trying again");
                        }
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            if role.changed().await.is_err() {
                return;
            }
        }
    }

    async fn tell(&self, role: &str) -> anyhow::Result<()> {
        let body = serde_json::json!({ "value": role }).to_string();
        let path = format!("/v1/apps/{}/machines/{}/metadata/role", self.app, self.id);
        let status = post(&self.socket, &path, &body).await.with_context(|| self.socket.display().to_string())?;
        ensure!((200..300).contains(&status), "it answers {status}");
        Ok(())
    }
}

/// One request over a Unix socket; returns the status.
async fn post(socket: &Path, path: &str, body: &str) -> io::Result<u16> {
    let mut stream = UnixStream::connect(socket).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

#[cfg(test)]
mod tests {
    use litefs_replication::roles::{Role, RoleHandle};
    use tokio::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Answers one request; returns it.
    async fn serve(listener: &UnixListener, status: &str) -> String {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let (mut request, mut bytes) = (String::new(), [0; 1024]);
        while !request.ends_with('}') {
            let len = stream.read(&mut bytes).await.expect("a request");
            request.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.expect("answered");
        request
    }

    #[tokio::test]
    async fn every_change_of_the_role_is_reported_until_it_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = |role| RoleState { role, primary: None, term: 0 };
        let (handle, set) = RoleHandle::fixed(state(Role::Unknown));
        let machine = Machine { socket, app: "app".into(), id: "m1".into() };
        let reporting = tokio::spawn(machine.report(handle.subscribe()));
        let first = tokio::time::timeout(PATIENCE, serve(&listener, "500 Oops")).await.expect("reported");
        assert!(first.starts_with("POST /v1/apps/app/machines/m1/metadata/role HTTP/1.1\r\n"), "{first}");
        assert!(first.ends_with("\r\n\r\n{\"value\":\"replica\"}"), "{first}");
        set.send_replace(state(Role::Primary));
        let second = tokio::time::timeout(PATIENCE, serve(&listener, "200 OK")).await.expect("reported again");
        assert!(second.ends_with("{\"value\":\"primary\"}"), "{second}");
        set.send_replace(state(Role::Replica));
        let third = tokio::time::timeout(PATIENCE, serve(&listener, "200 OK")).await.expect("reported");
        assert!(third.ends_with("{\"value\":\"replica\"}"), "{third}");
        reporting.abort();
    }
}
