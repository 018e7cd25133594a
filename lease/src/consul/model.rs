//! The JSON of Consul's API and of the keys that nodes keep there.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::leaser::LeaseId;

/// Body of `PUT /v1/session/create`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SessionSpec<'a> {
    /// For people who look at the sessions.
    pub(super) name: &'a str,
    /// The catalog node.
    pub(super) node: &'a str,
    /// A Go duration.
    pub(super) lock_delay: String,
    /// A Go duration; serialized as `TTL`.
    #[serde(rename = "TTL")]
    pub(super) ttl: String,
    /// `delete`: the key goes when the session goes.
    pub(super) behavior: &'static str,
    /// Empty: no health checks. Named `Checks` before Consul 1.7.
    pub(super) node_checks: [(); 0],
    /// As `node_checks`.
    pub(super) checks: [(); 0],
}

/// Answer of `PUT /v1/session/create`.
#[derive(Debug, Deserialize)]
pub(super) struct SessionCreated {
    #[serde(rename = "ID")]
    pub(super) id: String,
}

/// A key as Consul returns it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct KeyValue {
    /// Its full name.
    pub(super) key: String,
    #[serde(default)]
    value: Option<String>,
    /// The session that holds it; empty or absent: none.
    #[serde(default)]
    pub(super) session: Option<String>,
    /// Changes with every write.
    pub(super) modify_index: u64,
}

impl KeyValue {
    /// The value's bytes; `None` when Consul sent no valid base64.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.value.as_deref().unwrap_or_default()).ok()
    }

    /// The session that holds the key.
    pub(super) fn holder(&self) -> Option<LeaseId> {
        self.session.as_deref().filter(|session| !session.is_empty()).map(|session| LeaseId(session.to_owned()))
    }
}

/// One operation of a transaction.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct KvOperation<'a> {
    verb: &'static str,
    key: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

/// One operation of a transaction, as `PUT /v1/txn` wants it.
#[derive(Debug, Serialize)]
pub(super) struct Operation<'a> {
    #[serde(rename = "KV")]
    kv: KvOperation<'a>,
}

impl<'a> Operation<'a> {
    fn new(verb: &'static str, key: &'a str) -> Self {
        Self { kv: KvOperation { verb, key: Cow::Borrowed(key), value: None, session: None, index: None } }
    }

    /// Takes the key's lock for a session and sets its value; fails when another session holds it.
    pub(super) fn lock(key: &'a str, value: &[u8], session: &'a LeaseId) -> Self {
        let mut operation = Self::new("lock", key);
        operation.kv.value = Some(BASE64.encode(value));
        operation.kv.session = Some(&session.0);
        operation
    }

    /// Sets the key's value.
    pub(super) fn set(key: &'a str, value: &[u8]) -> Self {
        let mut operation = Self::new("set", key);
        operation.kv.value = Some(BASE64.encode(value));
        operation
    }

    /// Reads the key.
    pub(super) fn get(key: &'a str) -> Self {
        Self::new("get", key)
    }

    /// Removes the key, if it exists.
    pub(super) fn delete(key: &'a str) -> Self {
        Self::new("delete", key)
    }

    /// Removes the key; fails when it was written since `index`.
    pub(super) fn delete_unchanged(key: &'a str, index: u64) -> Self {
        let mut operation = Self::new("delete-cas", key);
        operation.kv.index = Some(index);
        operation
    }

    /// Sets the key; fails when it exists.
    pub(super) fn create(key: &'a str, value: &[u8]) -> Self {
        let mut operation = Self::new("cas", key);
        operation.kv.value = Some(BASE64.encode(value));
        operation.kv.index = Some(0);
        operation
    }

    /// Fails unless the session holds the key.
    pub(super) fn check_session(key: &'a str, session: &'a LeaseId) -> Self {
        let mut operation = Self::new("check-session", key);
        operation.kv.session = Some(&session.0);
        operation
    }

    /// Fails when the key was written since `index`, or is gone.
    pub(super) fn check_unchanged(key: &'a str, index: u64) -> Self {
        let mut operation = Self::new("check-index", key);
        operation.kv.index = Some(index);
        operation
    }

    /// Fails when the key exists.
    pub(super) fn check_absent(key: &'a str) -> Self {
        Self::new("check-not-exists", key)
    }
}

/// Answer of `PUT /v1/txn`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnAnswer {
    #[serde(default)]
    pub(super) results: Option<Vec<TxnResult>>,
    #[serde(default)]
    pub(super) errors: Option<Vec<TxnError>>,
}

/// The result of one operation.
#[derive(Debug, Deserialize)]
pub(super) struct TxnResult {
    #[serde(rename = "KV", default)]
    pub(super) kv: Option<KeyValue>,
}

/// Why a transaction was not applied.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnError {
    pub(super) what: String,
}

/// Value of the heartbeat key. `beat` makes every value different from the one before, whatever Consul makes of equal ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct HeartbeatValue {
    /// The session of the primary.
    pub(super) lease: LeaseId,
    /// `ModifyIndex` of the lease key since the primary acquired it.
    pub(super) key_index: u64,
    /// Counts up.
    pub(super) beat: u64,
    /// The primary's T1, in milliseconds.
    pub(super) fence_after_ms: u64,
}
