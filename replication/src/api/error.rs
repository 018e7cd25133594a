//! Errors of the API: a status and one line of text.

use std::io;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use litefs::DbName;
use litefs::database::ApplyError;

/// What a route answers instead of its result.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    text: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn not_primary() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "this node is not the primary")
    }

    /// Something was committed, and then the lease did not cover this instant any more.
    pub(crate) fn unconfirmed() -> Self {
        let text = "unconfirmed: this node's lease ended meanwhile, the cluster may not keep the transaction";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    pub(crate) fn unknown_database() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown database")
    }

    /// A failure of the disk or of what a client sent, while doing `what`.
    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
            io::ErrorKind::ResourceBusy => StatusCode::CONFLICT,
            io::ErrorKind::TimedOut | io::ErrorKind::ReadOnlyFilesystem => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("{what}: {error}"))
    }

    pub(crate) fn apply(error: &ApplyError) -> Self {
        match error {
            ApplyError::WrongPosition { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
            ApplyError::Damaged(_) => Self::bad_request(error.to_string()),
            ApplyError::Io(cause) => Self::io("apply", cause),
            ApplyError::SetAside(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut line: String = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.push('\n');
        (self.status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], line).into_response()
    }
}

/// The name of a database in a query.
pub(crate) fn database_name(text: &str) -> Result<DbName, ApiError> {
    text.parse().map_err(|error: litefs::NameError| ApiError::bad_request(error.to_string()))
}

/// A node ID as everywhere in LiteFS: hex.
pub(crate) fn node_id(text: &str) -> Result<u64, ApiError> {
    let good = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = if good { u64::from_str_radix(text, 16).ok() } else { None };
    id.ok_or_else(|| ApiError::bad_request("a node ID is up to 16 hex digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_is_one_line_whatever_it_says() {
        let response = ApiError::bad_request("a\nb\0c").into_response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let body = axum::body::to_bytes(response.into_body(), 100).await.expect("a body");
        assert_eq!(body, "a b c\n");
    }

    #[test]
    fn node_ids_are_hex() {
        assert_eq!(node_id("00000000000000FF").ok(), Some(255));
        for bad in ["", "+1", "g", "00000000000000000"] {
            assert!(node_id(bad).is_err(), "{bad:?}");
        }
    }
}
