//! Tunnels: after a 101 both sides' bytes are passed on as they come, until both have ended.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::metrics::Held;
use crate::server::Worker;
use crate::upstream::Switched;

/// Connects the two sides as soon as the client's has changed protocols, too. Each side's end is passed on as an end (half-close);
/// a slow reader slows the other side down (nothing is queued beyond the sockets and two copy buffers).
pub(crate) fn start(worker: &Worker, client: OnUpgrade, mut upstream: Switched) {
    let open = Held::new(&worker.shared.metrics.upgrades);
    worker.spawn_tunnel(async move {
        let _open = open;
        let client = match client.await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%error, "upgrade was answered but never happened");
                return;
            }
        };
        if let Err(error) = copy_bidirectional(&mut TokioIo::new(client), &mut upstream).await {
            tracing::debug!(%error, "upgraded connection ended with an error");
        }
    });
}
