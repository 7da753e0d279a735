//! Who may use NATS and how: TLS with certificates of its own, credentials files, and the permissions that suffice.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    file_support::{Clients, MIB, content, fetch, store},
    jetstream::{config, open, refusal},
    log_support::{append_all, payloads, read_all, room},
    nats::{Nats, SETTINGS},
    peers::instances,
    registry::{agree, replica, visit},
};

/// Writes a certificate and its key, signed by `issuer`.
fn issue(dir: &Path, name: &str, issuer: &Issuer<'_, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let params = CertificateParams::new(names).unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// An authority whose certificate lies in `dir`.
fn authority(dir: &Path, name: &str) -> Issuer<'static, rcgen::KeyPair> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
    Issuer::new(params, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_certificates_of_both_sides() {
    let dir = TempDir::new().unwrap();
    let own = authority(dir.path(), "ca");
    authority(dir.path(), "stranger");
    issue(dir.path(), "server", &own);
    issue(dir.path(), "client", &own);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let nats = Nats::with(&format!(
        "{SETTINGS}tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    ));
    let mut good = config(nats.url().replace("nats://", "tls://"));
    good.jetstream.startup_timeout = std::time::Duration::ZERO;
    good.jetstream.ca = file("ca.pem");
    good.jetstream.cert = file("client.pem");
    good.jetstream.key = file("client.key");
    let engine = open(&good).await;
    append_all(&engine, &room("tls"), &["x"]).await;
    assert_eq!(payloads(&read_all(&engine, &room("tls")).await), ["x"]);

    let mut unknown = good.clone();
    unknown.jetstream.ca = file("stranger.pem");
    let text = refusal(&unknown).await;
    assert!(text.contains("certificate"), "{text}");
    let mut nameless = good.clone();
    nameless.jetstream.cert = String::new();
    nameless.jetstream.key = String::new();
    let text = refusal(&nameless).await;
    assert!(text.contains("cannot use NATS at tls://"), "{text}");
    let mut missing = good;
    missing.jetstream.ca = file("nothing.pem");
    let text = refusal(&missing).await;
    assert!(text.contains("cannot use NATS at tls://"), "{text}");
}

/// A token that `by` signs for `of`.
fn token(by: &KeyPair, of: &KeyPair, name: &str, nats: Value) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    let header = part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = part(&json!({
        "jti": name,
        "iat": 1_700_000_000,
        "iss": by.public_key(),
        "sub": of.public_key(),
        "name": name,
        "nats": nats,
    }));
    let signed = format!("{header}.{claims}");
    let signature = BASE64.encode(by.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// An account without limits.
fn account(operator: &KeyPair, of: &KeyPair, name: &str, disk: i64) -> String {
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": disk, "disk_storage": disk, "streams": -1, "consumer": -1,
    });
    let nats = json!({ "type": "account", "version": 2, "limits": limits });
    token(operator, of, name, nats)
}

/// A credentials file of a user of the account.
fn credentials(dir: &Path, name: &str, account: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let token = token(account, &user, name, nats);
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    let file = dir.join(format!("{name}.creds"));
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file() {
    let dir = TempDir::new().unwrap();
    let operator = KeyPair::new_operator();
    let (system, own) = (KeyPair::new_account(), KeyPair::new_account());
    let by_operator = json!({ "type": "operator", "version": 2 });
    let nats = Nats::with(&format!(
        "{SETTINGS}operator: {}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload {{\n  {system}: {}\n  {own}: {}\n}}\n",
        token(&operator, &operator, "operator", by_operator),
        account(&operator, &system, "system", 0),
        account(&operator, &own, "own", -1),
        system = system.public_key(),
        own = own.public_key(),
    ));
    let mut good = config(nats.url());
    good.jetstream.credentials = credentials(dir.path(), "weir", &own);
    let engine = open(&good).await;
    append_all(&engine, &room("creds"), &["x"]).await;
    assert_eq!(payloads(&read_all(&engine, &room("creds")).await), ["x"]);

    let mut without = good.clone();
    without.jetstream.credentials = String::new();
    let text = refusal(&without).await;
    assert!(text.contains("authorization violation"), "{text}");
    let mut foreign = good.clone();
    foreign.jetstream.credentials = credentials(dir.path(), "stranger", &KeyPair::new_account());
    let text = refusal(&foreign).await;
    assert!(text.contains("authorization violation"), "{text}");
    let mut missing = good;
    missing.jetstream.credentials = dir.path().join("none").to_str().unwrap().to_owned();
    let text = refusal(&missing).await;
    assert!(text.contains("the credentials in"), "{text}");
}

/// What docs/scaling.md names suffices for rooms, members, files and what replicas tell each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permissions_that_are_documented_suffice() {
    let nats = Nats::with(&format!(
        "{SETTINGS}authorization {{ users: [{{ user: weir, password: secret, permissions: {{\n\
         publish: [\"weir.log.>\", \"weir.trim.>\", \"weir.live.>\", \"weir.peers.>\", \"$KV.weir-presence.>\",\n\
         \"$KV.weir-files.>\", \"$O.weir-files.>\", \"$JS.API.>\", \"$JS.FC.>\", \"_INBOX.>\"]\n\
         subscribe: [\"weir.live.>\", \"weir.peers.>\", \"_INBOX.>\"] }} }}] }}\n"
    ));
    let url = nats.url().replace("//", "//weir:secret@");
    let servers = [
        replica(url.clone(), "one", "10s").await,
        replica(url, "two", "10s").await,
    ];
    let ann = visit(&servers[0], "ann").await;
    agree(&servers, &["ann"]).await;
    ann.leave().await;
    agree(&servers, &[]).await;
    let listed = instances(&servers[0]).await.unwrap().instances;
    assert_eq!(listed.len(), 2, "{listed:?}");
    let bytes = content(3 * MIB);
    let mut here = Clients::of(&servers[0]).await;
    let id = store(&mut here, "name", &bytes).await.file_id;
    let mut there = Clients::of(&servers[1]).await;
    let (_, fetched) = fetch(&mut there.service, &id, 0, 0).await;
    assert!(fetched == bytes, "the other replica serves the file");
}
