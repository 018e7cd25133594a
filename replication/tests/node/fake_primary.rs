//! A primary that sends whatever a test wants.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use litefs::{DbName, Pos};
use litefs_lease::PrimaryInfo;
use litefs_replication::wire::decode_position_map;
use parking_lot::Mutex;

type Positions = BTreeMap<DbName, Pos>;
type Answer = dyn Fn(usize, &Positions) -> (Bytes, bool) + Send + Sync;

/// Answers the n-th `POST /stream` with bytes, and then keeps the stream open or ends it.
pub(crate) struct FakePrimary {
    pub(crate) info: PrimaryInfo,
    /// The positions of every request.
    pub(crate) asked: Arc<Mutex<Vec<Positions>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakePrimary {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakePrimary {
    /// `answer(n, positions)` gives the stream's bytes, and whether the stream stays open after them.
    pub(crate) async fn start(
        cluster_id: &'static str,
        answer: impl Fn(usize, &Positions) -> (Bytes, bool) + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (noted, answer): (_, Arc<Answer>) = (asked.clone(), Arc::new(answer));
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (noted, answer) = (noted.clone(), answer.clone());
                let service = service_fn(move |request| stream(cluster_id, noted.clone(), answer.clone(), request));
                tokio::spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        let info = PrimaryInfo { hostname: "fake".into(), advertise_url: url, proxy_url: None };
        Self { info, asked, server }
    }
}

async fn stream(
    cluster_id: &'static str,
    asked: Arc<Mutex<Vec<Positions>>>,
    answer: Arc<Answer>,
    request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    if request.uri().path() != "/stream" {
        // As LiteFS answers what it does not know.
        let answer = Response::builder().status(404);
        return Ok(answer.body(http_body_util::Empty::new().boxed_unsync()).expect("a response"));
    }
    let body = request.into_body().collect().await.expect("a position map").to_bytes();
    let positions = decode_position_map(&body).expect("a position map");
    let number = asked.lock().len();
    let (bytes, stays) = answer(number, &positions);
    asked.lock().push(positions);
    let frames = futures_util::stream::unfold(Some(bytes), move |bytes| async move {
        match bytes {
            Some(bytes) => Some((Ok(Frame::data(bytes)), None)),
            None if stays => std::future::pending().await,
            None => None,
        }
    });
    let response = Response::builder().header("litefs-cluster-id", cluster_id);
    Ok(response.body(StreamBody::new(frames).boxed_unsync()).expect("a response"))
}
