//! Tokens by effect, and the output gate.

use std::sync::atomic::Ordering;

use litefs_proxy::{ProxySettings, Role};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_get_that_wrote_gets_a_token_and_one_that_did_not_gets_none() {
    let node = Node::new(Role::Primary);
    let app = App::writing(&node, "ok").await;
    let proxy = start(&node, settings(app.addr));
    let wrote = curl(&[&proxy.url("/write")]).await;
    assert_eq!(wrote.header("litefs-txid"), Some("0000000000000001"));
    assert!(wrote.header("set-cookie").expect("a cookie").starts_with("__txid=0000000000000001; "));
    let read = curl(&[&proxy.url("/read")]).await;
    assert_eq!((read.header("litefs-txid"), read.header("set-cookie")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_larger_of_cookie_and_header_counts() {
    let (node, app) = (Node::new(replica_of("http://127.0.0.1:1")), App::saying("ok").await);
    let proxy = start(&node, settings(app.addr));
    node.advance("app.db", 5);
    for (cookie, header) in [(9, 1), (1, 9)] {
        let url = proxy.url("/");
        let (cookie, header) = (format!("__txid={cookie:016x}"), format!("Litefs-Txid: {header:016x}"));
        node.advance("app.db", 8);
        let read = tokio::spawn(async move { curl(&["-b", &cookie, "-H", &header, &url]).await });
        eventually("it waits", || proxy.metrics.waiting_now() == 1).await;
        node.advance("app.db", 9);
        assert_eq!(read.await.expect("curl").status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_never_sees_the_trackers_cookie() {
    let node = Node::new(Role::Primary);
    let app = App::saying("ok").await;
    let proxy = start(&node, settings(app.addr));
    curl(&["-b", "a=b; __txid=0000000000000000; c=\"d e\"", &proxy.url("/")]).await;
    assert_eq!(app.last().header("cookie"), Some("a=b; c=\"d e\""));
    curl(&["-b", "__txid=0000000000000000", "-H", "Litefs-Txid: 0000000000000000", &proxy.url("/")]).await;
    assert_eq!((app.last().header("cookie"), app.last().header("litefs-txid")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_is_secure_when_the_client_came_over_tls() {
    let node = Node::new(Role::Primary);
    let app = App::saying("ok").await;
    let trusting = start(&node, settings(app.addr));
    for header in ["X-Forwarded-Proto: https", "Fly-Forwarded-Port: 443"] {
        let got = curl(&["-d", "x", "-H", header, &trusting.url("/")]).await;
        assert!(got.header("set-cookie").expect("cookie").ends_with("; HttpOnly; Secure; SameSite=Lax"), "{header}");
    }
    assert_eq!(app.seen.lock()[0].header("x-forwarded-proto"), Some("https"));
    let wary = start(&node, ProxySettings { trusted_proxies: vec![], ..settings(app.addr) });
    let got = curl(&["-d", "x", "-H", "X-Forwarded-Proto: https", &wary.url("/")]).await;
    assert!(!got.header("set-cookie").expect("cookie").contains("Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_the_authority_also_for_a_position_it_never_reached() {
    let node = Node::new(Role::Primary);
    node.advance("app.db", 3);
    let app = App::saying("ok").await;
    let short = std::time::Duration::from_millis(50);
    let limits = ProxySettings { replica_wait: short, primary_redirect_timeout: short, ..settings(app.addr) };
    let proxy = start(&node, limits);
    let got = curl(&["-b", "__txid=ffffffffffffffff", &proxy.url("/")]).await;
    assert_eq!(got.status, 200);
    // The client is told what is true, so that replicas do not have to wait for what never comes.
    assert_eq!(got.header("litefs-txid"), Some("0000000000000003"));
    // But not by a node whose lease may be gone: another one may have got there.
    node.lease.store(false, Ordering::SeqCst);
    let got = curl(&["-b", "__txid=ffffffffffffffff", &proxy.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-txid")), (504, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_databases_the_token_covers_all() {
    let node = Node::new(Role::Primary);
    node.advance("app.db", 1);
    node.advance("jobs.db", 4);
    let app = App::saying("ok").await;
    let several = || ProxySettings { db: vec!["app.db".into(), "jobs.db".into()], ..settings(app.addr) };
    let primary = start(&node, several());
    let got = curl(&["-d", "x", &primary.url("/")]).await;
    let cookies = got.headers("set-cookie");
    assert!(cookies[0].starts_with("__txid=0000000000000001; "), "{cookies:?}");
    assert!(cookies[1].starts_with("__txids=jobs.db=0000000000000004; "), "{cookies:?}");
    assert_eq!(got.header("litefs-txid"), Some("0000000000000001&jobs.db=0000000000000004"));

    let behind = Node::new(replica_of("http://127.0.0.1:1"));
    behind.advance("app.db", 1);
    let replica = start(&behind, several());
    let url = replica.url("/");
    let read =
        tokio::spawn(
            async move { curl(&["-b", "__txid=0000000000000001; __txids=jobs.db=0000000000000004", &url]).await },
        );
    eventually("it waits", || replica.metrics.waiting_now() == 1).await;
    behind.advance("jobs.db", 4);
    assert_eq!(read.await.expect("curl").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_write_leaves_only_under_a_valid_lease() {
    let node = Node::new(Role::Primary);
    let app = App::writing(&node, "written").await;
    let proxy = start(&node, settings(app.addr));
    node.lease.store(false, Ordering::SeqCst);
    let got = curl(&["-d", "x", &proxy.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-outcome")), (503, Some("unconfirmed")));
    assert_eq!((got.header("retry-after"), got.header("set-cookie")), (Some("1"), None));
    assert_eq!(curl(&[&proxy.url("/write")]).await.status, 503);
    // What wrote nothing is as true as before.
    assert_eq!(curl(&[&proxy.url("/read")]).await.status, 200);
    assert_eq!(proxy.metrics.decided("unconfirmed"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_be_captured_is_unconfirmed() {
    let node = Node::new(Role::Primary);
    let app = App::writing(&node, "written").await;
    let proxy = start(&node, settings(app.addr));
    node.capture_fails.store(true, Ordering::SeqCst);
    let got = curl(&["-d", "x", &proxy.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-outcome")), (503, Some("unconfirmed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_cannot_forge_what_only_the_proxy_says() {
    let node = Node::new(Role::Primary);
    let forged = "Litefs-Txid: 00000000000000ff\r\nLitefs-Hop: not-primary\r\nLitefs-Outcome: unconfirmed\r\n";
    let app = App::start(move |_| answer("200 OK", forged, "ok")).await;
    let proxy = start(&node, settings(app.addr));
    let got = curl(&[&proxy.url("/")]).await;
    for name in ["litefs-txid", "litefs-hop", "litefs-outcome"] {
        assert_eq!(got.header(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_a_lease_does_not_answer_reads_that_are_ahead_of_it() {
    let node = Node::new(Role::Primary);
    node.advance("app.db", 5);
    node.lease.store(false, std::sync::atomic::Ordering::SeqCst);
    let (old, new_app) = (App::saying("stale").await, App::saying("fresh").await);
    let new_node = Node::new(Role::Primary);
    new_node.advance("app.db", 6);
    let new = start(&new_node, settings(new_app.addr));
    let short = ProxySettings { replica_wait: std::time::Duration::from_millis(50), ..settings(old.addr) };
    let proxy = start(&node, short);
    // What it has it may show.
    let got = curl(&["-H", "Litefs-Txid: 0000000000000005", &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "stale"));
    let url = proxy.url("/");
    let read = tokio::spawn(async move { curl(&["-H", "Litefs-Txid: 0000000000000006", &url]).await });
    eventually("the read waits", || proxy.metrics.waiting_now() == 1).await;
    node.set_role(new.as_primary());
    let got = read.await.expect("curl");
    assert_eq!((got.status, got.body.as_str()), (200, "fresh"));
    // With a lease again it is the authority.
    node.set_role(Role::Primary);
    node.lease.store(true, std::sync::atomic::Ordering::SeqCst);
    let got = curl(&["-H", "Litefs-Txid: 0000000000000009", &proxy.url("/")]).await;
    assert_eq!((got.status, got.header("litefs-txid")), (200, Some("0000000000000005")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deposed_primary_has_of_its_own_does_not_count() {
    let (old, new_app) = (App::saying("stale").await, App::saying("fresh").await);
    let new_node = Node::new(Role::Primary);
    new_node.advance("app.db", 5);
    let new = start(&new_node, settings(new_app.addr));
    // Its own fifth transaction is not the cluster's fifth.
    let node = Node::new(new.as_primary());
    node.advance("app.db", 5);
    node.shared_history.send_replace(false);
    let short = ProxySettings { replica_wait: std::time::Duration::from_millis(50), ..settings(old.addr) };
    let proxy = start(&node, short);
    let got = curl(&["-H", "Litefs-Txid: 0000000000000005", &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "fresh"));
    // Who has seen nothing may be shown anything.
    let got = curl(&[&proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "stale"));
    // It has caught up.
    node.shared_history.send_replace(true);
    let got = curl(&["-H", "Litefs-Txid: 0000000000000005", &proxy.url("/")]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "stale"));
}
