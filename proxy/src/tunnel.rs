//! Tunnels: after a 101 both sides' bytes are passed on as they come, until both have ended.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use crate::metrics::Held;
use crate::server::Worker;

/// Connects the two sides as soon as both have changed protocols. Each side's end is passed on as an end (half-close);
/// a slow reader slows the other side down (nothing is queued beyond the sockets and two copy buffers).
pub(crate) fn start(worker: &Worker, client: OnUpgrade, upstream: OnUpgrade) {
    let open = Held::new(&worker.shared.metrics.upgrades);
    worker.spawn_tunnel(async move {
        let _open = open;
        let (client, upstream) = match futures_util::try_join!(client, upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade was answered but never happened");
                return;
            }
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        if let Err(error) = copy_bidirectional(&mut client, &mut upstream).await {
            tracing::debug!(%error, "upgraded connection ended with an error");
        }
    });
}
