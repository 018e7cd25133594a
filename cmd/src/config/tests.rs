//! `litefs.yml` as a whole: defaults, LiteFS's own example, and what is refused with which line.

use super::*;

fn read(text: &str) -> Result<Config, String> {
    parse(text, Some(Path::new("litefs.yml")), &Overrides::default()).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    read(text).expect_err("must be refused")
}

#[test]
fn the_smallest_file_gives_every_default() {
    let config = read("lease:\n  type: static\n").expect("valid");
    assert_eq!(config.data.dir, Path::new("/var/lib/litefs"));
    assert_eq!(config.fuse.dir, Path::new("/litefs"));
    assert_eq!(config.http.addr.to_string(), ":20202");
    assert!(config.exit_on_error && config.data.compress && config.lease.candidate && config.fuse.passthrough);
    assert!(!config.skip_sync && !config.strict_verify && !config.lease.promote && !config.fuse.allow_other);
    assert_eq!(config.data.retention, Duration::from_secs(600));
    assert_eq!(config.http.snapshot_timeout, config.data.retention);
    assert!(config.proxy.is_none() && config.exec.is_empty() && config.tracing.path.is_none());
}

#[test]
fn a_file_as_the_original_documents_it_is_read() {
    let config = read(
        r#"
exit-on-error: false
fuse:
  dir: "/litefs"
  allow-other: true
data:
  dir: "/var/lib/litefs"
  retention: 1h
proxy:
  addr: ":8080"
  target: "localhost:8081"
  db: "db"
  passthrough: ["*.ico", "*.png"]
  debug:
exec:
  - cmd: "python migrate.py 'a b'"
    if-candidate: true
  - cmd: "node app.js"
lease:
  type: "consul"
  candidate: true
  promote: true
  advertise-url: "http://node1.vm.app.internal:20202/"
  consul:
    url: "http://consul:8500/prefix"
    key: "app/primary"
backup:
tracing:
  path: /var/log/lfs/trace.log
"#,
    )
    .expect("valid");
    assert_eq!(config.proxy.expect("proxy").forward_mode(), litefs_proxy::ForwardMode::Http);
    assert_eq!(config.exec[0], ExecStep { cmd: "python migrate.py 'a b'".into(), if_candidate: true });
    assert_eq!(config.exec.len(), 2);
    assert_eq!(config.lease.advertise_url.as_deref(), Some("http://node1.vm.app.internal:20202"));
    assert_eq!(config.lease.kind, LeaseType::Consul);
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    assert!(refused("lease:\n  type: static\nfoo: 1\n").starts_with("litefs.yml: line 3: foo: unknown field `foo`"));
    let error = refused("lease:\n  type: static\n  canddate: true\n");
    assert!(error.starts_with("litefs.yml: line 3: lease.canddate: unknown field `canddate`"), "{error}");
    let error = refused("lease:\n  type: static\nexec:\n  - cmd: x\n    only: true\n");
    assert!(error.contains("line 5") && error.contains("`only`"), "{error}");
}

#[test]
fn wrong_values_name_their_key_and_line() {
    for (text, expected) in [
        ("data:\n  dir: /d\n", "litefs.yml: lease.type: is required"),
        ("lease:\n  type: etcd\n", "litefs.yml: line 2: lease.type: \"etcd\""),
        ("lease:\n  type: static\n  databases: [a]\n", "line 3: lease.databases: is only possible"),
        ("lease: {type: static}\nfuse:\n  dir: /a/\ndata:\n  dir: /a\n", "line 3: fuse.dir: must be another"),
        ("lease: {type: static}\nfuse:\n  dir: /a\ndata:\n  dir: /a/b\n", "line 5: data.dir: must not lie under"),
        ("lease: {type: static}\nfuse:\n  passthrough: on\n", "line 3: fuse.passthrough"),
        ("lease: {type: static}\ndata:\n  retention: 10\n", "line 3: data.retention: a duration needs a unit"),
        ("lease: {type: static}\ndata:\n  dir: /d\n  retention: soon\n", "line 4: data.retention: \"soon\""),
        (
            "lease: {type: static}\nproxy:\n  target: a:1\n  db: d\n  addr: :1\n  max-lag: soon\n  debug: true\n",
            "line 6: proxy.max-lag: \"soon\"",
        ),
        ("lease: {type: static}\nhttp:\n  addr: nonsense\n", "line 3: http.addr: \"nonsense\" is not an address"),
        ("lease:\n  type: consul\n", "lease.consul.url: is required"),
        ("lease:\n  type: static\n  candidate: false\n", "lease.advertise-url: is required on a static replica"),
        ("lease: {type: static}\nproxy:\n  target: a:1\n  addr: :1\n", "proxy.db: required"),
        (
            "lease: {type: static}\nproxy:\n  forward-mode: teleport\n  target: a:1\n  db: d\n  addr: :1\n",
            "line 3: proxy.forward-mode",
        ),
        ("lease: {type: static}\nproxy:\n  target: a:1\n  db: d\n", "proxy.addr: required"),
        ("lease: {type: static}\nproxy:\n  target: a\n  db: d\n  addr: :1\n", "line 3: proxy.target"),
        ("lease: {type: static}\nexec: \"a 'b\"\n", "line 2: exec"),
        ("lease: {type: static}\nlog:\n  format: xml\n", "line 3: log.format"),
        ("lease: [\n", "litefs.yml: line"),
        (
            "lease:\n  type: consul\n  consul:\n    url: http://c:1\n    key: k\n    heartbeat-timeout: 1s\n",
            "line 6: lease.consul.heartbeat-timeout: a primary must be given two heartbeats",
        ),
    ] {
        let error = refused(text);
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn flags_stand_above_the_file() {
    let overrides = Overrides {
        data_dir: Some("/x".into()),
        fuse_dir: Some("/y".into()),
        http_addr: Some("127.0.0.1:0".into()),
        exec: Some("true".into()),
        debug: true,
        ..Overrides::default()
    };
    let config = parse(
        "lease:\n  type: static\nexec: false\n".replace("exec: false", "exec: sleep 1").as_str(),
        None,
        &overrides,
    )
    .expect("valid");
    assert_eq!((config.data.dir.to_str(), config.fuse.dir.to_str()), (Some("/x"), Some("/y")));
    assert_eq!(config.http.addr.to_string(), "127.0.0.1:0");
    assert_eq!(config.exec, [ExecStep { cmd: "true".into(), if_candidate: false }]);
    assert!(config.log.debug);
}

#[test]
fn an_empty_file_says_that_the_lease_type_is_missing() {
    assert_eq!(refused(""), "litefs.yml: lease.type: is required: consul or static");
}

#[test]
fn the_files_of_the_deployment_guide_are_read() {
    let guide = include_str!("../../../docs/deployment.md");
    let files: Vec<_> =
        guide.split("```yaml\n# litefs.yml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(files.len(), 2, "Kubernetes and Fly.io");
    let env = |name: &str| {
        let value = match name {
            "ADVERTISE" => "guestbook-0.guestbook-nodes",
            "FLY_REGION" | "PRIMARY_REGION" => "fra",
            "FLY_ALLOC_ID" => "d890",
            "FLY_APP_NAME" => "guestbook",
            "FLY_CONSUL_URL" => "https://:token@consul.example:8500/guestbook-1/",
            _ => return None,
        };
        Some(value.to_owned())
    };
    for (text, advertise) in
        files.iter().zip(["http://guestbook-0.guestbook-nodes:20202", "http://d890.vm.guestbook.internal:20202"])
    {
        let config = read(&expand::expand(text, env)).expect("valid");
        assert_eq!(config.lease.advertise_url.as_deref(), Some(advertise));
        assert!(config.lease.kind == LeaseType::Consul && config.lease.candidate && config.proxy.is_some());
    }
}
