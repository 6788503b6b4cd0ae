//! Files that change, names that are asked for, tickets that end with their certificate.

use std::path::Path;
use std::time::SystemTime;

use super::*;

fn pair(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn write(dir: &Path, name: &str) -> TlsFiles {
    let files = TlsFiles { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
    let (cert, key) = pair(&name.replace(|c: char| !c.is_ascii(), "-"));
    std::fs::write(&files.cert, cert).unwrap();
    std::fs::write(&files.key, key).unwrap();
    files
}

/// Moves the file's time on, as a later write would.
fn touch(path: &Path, seconds: u64) {
    let cert = std::fs::File::options().write(true).open(path).unwrap();
    cert.set_modified(SystemTime::now() + Duration::from_secs(seconds)).unwrap();
}

fn store(dir: &Path, hosts: &[&str]) -> (Tls, Arc<TlsStore>) {
    let files = write(dir, "default.example");
    let hosts = hosts.iter().map(|host| ((*host).to_owned(), write(dir, host))).collect();
    let config = Tls { files, hosts, ..Tls::default() };
    let store = TlsStore::load(&config).unwrap();
    (config, store)
}

#[test]
fn a_changed_certificate_is_served_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (config, store) = store(dir.path(), &[]);
    let before = store.endpoint_hash();
    assert!(!store.reload().unwrap());
    write(dir.path(), "default.example");
    touch(&config.files.cert, 5);
    assert!(store.reload().unwrap());
    assert_ne!(store.endpoint_hash(), before);
}

#[test]
fn a_broken_file_keeps_the_old_certificate_and_stops_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (config, store) = store(dir.path(), &["one.example"]);
    let before = store.endpoint_hash();
    let host_before = store.choose_by(Some("one.example"), None).endpoint().to_vec();
    std::fs::write(&config.files.cert, "nothing").unwrap();
    touch(&config.files.cert, 5);
    write(dir.path(), "one.example");
    touch(&config.hosts["one.example"].cert, 5);
    assert!(matches!(store.reload(), Err(TlsError::NoCertificate(_))));
    assert_eq!(store.endpoint_hash(), before);
    assert_ne!(store.choose_by(Some("one.example"), None).endpoint(), host_before);
    assert!(!store.reload().unwrap(), "the same broken file is not reported twice");
}

#[test]
fn the_name_that_is_asked_for_chooses_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (_, store) = store(dir.path(), &["one.example", "b\u{fc}cher.example"]);
    let of = |sni, host| store.choose_by(sni, host).endpoint().to_vec();
    let default = of(None, None);
    let one = of(Some("one.example"), None);
    assert_eq!(default, store.endpoint_hash());
    assert_ne!(one, default);
    assert_eq!(of(Some("ONE.example"), None), one);
    assert_eq!(of(Some("other.example"), None), default);
    assert_eq!(of(None, Some("one.example")), one, "before STARTTLS the stream has named its host");
    assert_eq!(of(Some("other.example"), Some("one.example")), one);
    let books = of(Some("xn--bcher-kva.example"), None);
    assert!(
        books != default && books == of(None, Some("b\u{fc}cher.example")),
        "as in DNS, and as in addresses"
    );
}

#[test]
fn a_ticket_opens_no_session_under_another_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (config, store) = store(dir.path(), &["one.example"]);
    let tickets = |sni| store.choose_by(sni, None).config(Door::DirectTls, &[]).ticketer.clone();
    let first = tickets(None);
    let ticket = first.encrypt(b"state").unwrap();
    assert_eq!(first.decrypt(&ticket).unwrap(), b"state");
    assert_eq!(
        store.choose_by(None, None).config(Door::StartTls, &[]).ticketer.decrypt(&ticket).unwrap(),
        b"state"
    );
    assert_eq!(tickets(Some("one.example")).decrypt(&ticket), None);
    assert!(first.lifetime() <= config.ticket_lifetime_s);
    write(dir.path(), "default.example");
    touch(&config.files.cert, 5);
    store.reload().unwrap();
    assert_eq!(tickets(None).decrypt(&ticket), None);
}

#[test]
fn without_a_lifetime_there_are_no_tickets_and_never_is_there_early_data() {
    let dir = tempfile::tempdir().unwrap();
    let config = Tls { files: write(dir.path(), "x"), ticket_lifetime_s: 0, ..Tls::default() };
    let store = TlsStore::load(&config).unwrap();
    let served = store.choose_by(None, None).config(Door::DirectTls, &[]);
    assert!(!served.ticketer.enabled() && served.send_tls13_tickets == 0 && served.max_early_data_size == 0);
}

#[test]
fn authorities_of_clients_are_read_again_too() {
    let dir = tempfile::tempdir().unwrap();
    let ca = write(dir.path(), "authority").cert;
    let config = Tls { files: write(dir.path(), "x"), client_ca: Some(ca.clone()), ..Tls::default() };
    let store = TlsStore::load(&config).unwrap();
    let hints = |store: &TlsStore| {
        let clients = store.clients.read().clone().unwrap();
        clients.verifier().root_hint_subjects().len()
    };
    assert_eq!(hints(&store), 1);
    let two = [pair("a").0, pair("b").0].concat();
    std::fs::write(&ca, two).unwrap();
    touch(&ca, 5);
    assert!(store.reload().unwrap());
    assert_eq!(hints(&store), 2);
    std::fs::write(&ca, "").unwrap();
    touch(&ca, 10);
    assert!(store.reload().is_err());
    assert_eq!(hints(&store), 2);
}
