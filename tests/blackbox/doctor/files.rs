//! Faults in the files that flags name, and in osqueryd's rules for the extension's own.

use std::fs;
use std::os::unix::fs::chown;

use rustix::mount::MountFlags;
use testkit::certs::{Authority, default_authority};

use super::{Fault, Host, NO_SUCH, examine, fault, find, own_copy};
use crate::faults::Tmpfs;
use crate::pins::pin;
use crate::rig::mode;

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    fault("autoload file", "failure", "/no/such can't be read",
        "make it, with one line: ", |host| host.flag("extensions_autoload", NO_SUCH)),
    fault("autoload file", "failure", "does not name the extension",
        "add the line ", |host| drop(host.file("extensions.load", "# /x/remote_tls.ext\n/other.ext\n"))),
    fault("autoload file", "failure", "names the extension twice", "remove one", |host| {
        let path = host.path("remote_tls.ext");
        host.file("extensions.load", &format!("{}\n/usr/lib/osquery-remote-tls.ext\n", path.display()));
    }),
    fault("autoload file", "warning", "remote_tls.ext is relative",
        "write the whole path", |host| drop(host.file("extensions.load", "remote_tls.ext\n"))),
    fault("autoload file", "warning", "extensions.load is writable by everybody",
        "chmod go-w ", |host| mode(&host.path("extensions.load"), 0o646)),
    fault("autoload file", "warning", "is writable by everybody, and a line added there",
        "chmod go-w ", |host| mode(host.directory.path(), 0o757)),
    fault("extension file", "failure", "remote_tls.ext: No such file",
        "install -o root -m 0755", |host| drop(host.file("extensions.load", "/no/such/remote_tls.ext\n"))),
    fault("extension file", "failure", "does not end in .ext", "rename it to ", |host| {
        let path = host.path("remote_tls.bin");
        fs::rename(own_copy(host), &path).unwrap();
        host.file("extensions.load", path.to_str().unwrap());
    }),
    fault("extension file", "failure", "is writable by everybody: osqueryd does not start it",
        "chmod o-w ", |host| mode(&own_copy(host), 0o757)),
    fault("extension file", "failure", "is not executable by its owner",
        "chmod 0755 ", |host| mode(&own_copy(host), 0o655)),
    fault("extension file", "failure", "sticky bit",
        "install it into a directory of root's", |host| mode(host.directory.path(), 0o1700)),
    fault("extension file", "warning", "/ext is writable by everybody, who can so", "chmod go-w ", |host| {
        let path = host.file("ext/remote_tls.ext", "");
        fs::remove_file(&path).unwrap();
        fs::rename(own_copy(host), &path).unwrap();
        mode(path.parent().unwrap(), 0o777);
        host.file("extensions.load", path.to_str().unwrap());
    }),
    fault("extension file", "failure", "remote_tls.ex: No such file", "remote_tls.ext is there, and meant", |host| {
        let path = host.path("remote_tls.ex");
        host.file("extensions.load", path.to_str().unwrap());
    }),
    fault("extension file", "failure", "remote_tls.ext is no program: osqueryd can't start it", "install the extension anew",
        |host| fs::write(own_copy(host), "# an error page, and 20 bytes at least").unwrap()),
    fault("extension file", "failure", "remote_tls.ext is empty: osqueryd can't start it", "install the extension anew",
        |host| fs::write(own_copy(host), "").unwrap()),
    fault("extension file", "failure", "remote_tls.ext is a program for another processor", "this host's processor", |host| {
        let path = own_copy(host);
        let mut bytes = fs::read(&path).unwrap();
        bytes[18] ^= 0xff;
        fs::write(path, bytes).unwrap();
    }),
    fault("socket", "failure", "is too long for a socket",
        "shorter",
        |host| { let long = host.path(&"x".repeat(100)); host.flag("extensions_socket", long.to_str().unwrap()); }),
    fault("socket", "failure", "the directory of /no/such/osquery.em is not there",
        "make it", |host| host.flag("extensions_socket", "/no/such/osquery.em")),
    fault("extensions timeout", "failure", "--extensions_timeout=0",
        "=10", |host| host.flag("extensions_timeout", "0")),
    fault("extensions timeout", "warning", "--extensions_timeout=1: a busy host",
        "=10", |host| host.flag("extensions_timeout", "1")),
    fault("extensions timeout", "failure", "--extensions_timeout=3s is no whole number",
        "=3", |host| host.flag("extensions_timeout", "3s")),
    fault("extensions timeout", "failure", "--extensions_interval=0.5 is no whole number",
        "=3", |host| host.flag("extensions_interval", "0.5")),
    fault("enroll secret", "failure", "--enroll_secret_path=/no/such can't be read",
        "make the file (chmod 0600)", |host| host.flag("enroll_secret_path", NO_SUCH)),
    fault("enroll secret", "failure", "the secret is empty",
        "put your server's enroll secret", |host| drop(host.file("secret", " \n"))),
    // Cases secrets/secret-bom.txt, secret-utf16.txt and secret-quoted.txt (kolide/fleet#1816, osquery#4548).
    fault("enroll secret", "failure", "secret is UTF-8 with a byte order mark (BOM) at its beginning, which is sent",
        "sed -i '1s/", |host| fs::write(host.path("secret"), b"\xef\xbb\xbfs3cret\n").unwrap()),
    fault("enroll secret", "failure", "secret is UTF-16: no server has such a secret", "iconv -f UTF-16",
        |host| fs::write(host.path("secret"), b"\xff\xfes\x003\x00c\x00r\x00e\x00t\x00\r\x00\n\x00").unwrap()),
    fault("enroll secret", "warning", "the secret has quotes around it",
        "remove the quotes", |host| drop(host.file("secret", "\"s3cret\"\n"))),
    fault("enroll secret", "warning", "the secret has 2 lines",
        "leave the one line", |host| drop(host.file("secret", "a-secret\nanother\n"))),
    fault("enroll secret", "warning", "secret is readable by everybody",
        "chmod o-r ", |host| mode(&host.path("secret"), 0o644)),
    fault("enroll secret", "warning", "--enroll_secret_env=NO_SUCH_VARIABLE",
        "service sets it",
        |host| { host.flags.remove("enroll_secret_path"); host.flag("enroll_secret_env", "NO_SUCH_VARIABLE"); }),
    fault("enroll secret", "warning", "the empty secret is sent",
        "set --enroll_secret_path", |host| drop(host.flags.remove("enroll_secret_path"))),
    fault("server trust", "failure", "--tls_server_certs=/no/such can't be used: No such file",
        "name the PEM file", |host| host.flag("tls_server_certs", NO_SUCH)),
    fault("server trust", "failure", "it holds no certificate in PEM",
        "name the PEM file", |host| drop(host.file("ca.pem", "nothing"))),
    fault("server trust", "failure", "no certificate in it is valid today",
        "anew",
        |host| drop(host.file("ca.pem", &expired_authority()))),
    fault("server trust", "warning", "ca.pem: a certificate ends in 10 days: CN=short",
        "replace",
        |host| {
            let authority = short_lived_authority();
            *host = Host::with_server(|server| server.identity = authority.issue_server_with(|_| {}));
            host.file("ca.pem", &authority.cert_pem());
        }),
    fault("server trust", "warning", "ca.pem: 2 of 2 certificates have ended or end soon",
        "get your server's authority anew",
        |host| {
            let authority = short_lived_authority();
            *host = Host::with_server(|server| server.identity = authority.issue_server_with(|_| {}));
            host.file("ca.pem", &format!("{}{}", expired_authority(), authority.cert_pem()));
        }),
    fault("server trust", "warning", "--tls_pins has one key and no spare",
        "make a spare key", |host| {
            let authority = pin(&default_authority().cert_pem());
            host.file("remote_tls.flags", &format!("--tls_pins={authority}\n"));
        }),
    fault("client certificate", "failure", "--tls_client_key= can't be used: tls_client_cert is set",
        "set both", |host| host.flag("tls_client_cert", "/c.pem")),
    fault("client certificate", "failure", "--tls_client_cert=/no/such can't be used",
        "put the certificate there",
        |host| { host.flag("tls_client_cert", NO_SUCH); host.flag("tls_client_key", NO_SUCH); }),
    fault("client certificate", "failure", "no unencrypted private key",
        "not encrypted", |host| client(host, |cert, _| (cert, "nothing".to_owned()))),
    fault("client certificate", "failure", "don't belong together",
        "its own key", |host| client(host, |cert, _| (cert, Authority::new("x").issue_client("y").key_pem))),
    fault("client certificate", "warning", "client.key is readable by everybody",
        "chmod o-r ", |host| { client(host, |cert, key| (cert, key)); mode(&host.path("client.key"), 0o644); }),
    fault("request headers", "failure", "headers can't be used: No such file",
        "make the file (chmod 0600)", |host| headers(host, None)),
    fault("request headers", "failure", "headers can't be used: others can read or change it (mode 0640)",
        "chmod 0600 ", |host| { headers(host, Some("X-A: b\n")); mode(&host.path("headers"), 0o640); }),
    fault("request headers", "failure", "headers can't be used: not to be trusted: ",
        "of osqueryd's user", |host| { headers(host, Some("X-A: b\n")); chown(host.path("headers"), Some(65534), None).unwrap(); }),
    fault("request headers", "failure", "no \"Name: value\" in line 2",
        "correct the line", |host| headers(host, Some("X-A: b\nhunter2\n"))),
    fault("request headers", "failure", "the header host, which is the extension's own to set, in line 1",
        "correct the line", |host| headers(host, Some("Host: b\n"))),
    fault("request headers", "warning", "headers has no header in it",
        "Name: value", |host| headers(host, Some("# X-A: b\n"))),
];

/// Sets a file of headers, which is there when it has a text.
fn headers(host: &mut Host, text: Option<&str>) {
    if let Some(text) = text {
        host.file("headers", text);
    }
    host.file("remote_tls.flags", &format!("--tls_headers_file={}\n", host.path("headers").display()));
}

/// The doctor's own requests have them too.
#[test]
fn what_every_request_has_the_doctor_s_have() {
    let mut host = Host::new();
    headers(&mut host, Some("X-Access-Token: t0ken-1\nX-Access-Id: 7\n"));
    let examined = host.examine(&["--deep", "--enroll"]);
    examined.must_say("request headers", "ok", "headers: x-access-token, x-access-id", "");
    assert!(!examined.text.contains("t0ken-1"), "{}", examined.text);
    let requests = host.server.requests();
    assert!(requests.len() >= 5, "{}", host.server.transcript());
    assert!(requests.iter().all(|request| request.header("x-access-token") == Some("t0ken-1")));
    host.file("headers", "hunter2\n");
    host.server.forget_requests();
    let examined = host.examine(&["--deep"]);
    examined.must_say("server answer", "skipped", "no request can be made: see request headers", "");
    assert!(!examined.text.contains("hunter2") && host.server.requests().is_empty(), "{}", examined.text);
}

/// Gives a host a client certificate and a key after `change`.
pub(super) fn client(host: &mut Host, change: fn(String, String) -> (String, String)) {
    let identity = default_authority().issue_client("node");
    let (cert, key) = change(identity.cert_pem, identity.key_pem);
    let (cert, key) = (host.file("client.pem", &cert), host.file("client.key", &key));
    host.flag("tls_client_cert", cert.to_str().unwrap());
    host.flag("tls_client_key", key.to_str().unwrap());
}

fn expired_authority() -> String {
    testkit::certs::self_signed(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "old");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })
    .cert_pem
}

fn short_lived_authority() -> Authority {
    let soon = time::OffsetDateTime::now_utc() + std::time::Duration::from_secs(10 * 24 * 3600 + 3600);
    Authority::new_with("short", |params| params.not_after = soon)
}

/// Case operator: a distribution's bundle has some that ended, and the exit code was 2 for ever.
#[test]
fn certificates_that_end_are_nothing_to_wonder_about_unless_the_server_needs_them() {
    let host = Host::new();
    host.file("ca.pem", &[default_authority().cert_pem(), expired_authority(), expired_authority()].concat());
    let examined = host.examine(&[]);
    examined.must_say("server trust", "ok", "ca.pem: 2 of 3 certificates have ended or end soon", "");
    assert_eq!(examined.problems().len(), 0, "{}", examined.text);

    let authority = short_lived_authority();
    let host = Host::with_server(|server| server.identity = authority.issue_server_with(|_| {}));
    host.file("ca.pem", &format!("{}{}", default_authority().cert_pem(), authority.cert_pem()));
    let examined = host.examine(&[]);
    examined.must_say("server trust", "ok", "ca.pem: 1 of 2 certificates has ended or ends soon", "");
    let message = "the authority by which the server's certificate is trusted ends in 10 days (CN=short); it presents:";
    examined.must_say_only("tls handshake", "warning", message, "add your server's next authority");
}

#[test]
fn what_is_wrong_with_files_is_said() {
    find(FAULTS);
}

#[test]
fn an_extension_of_another_user_is_refused() {
    let host = Host::new();
    let path = own_copy(&host);
    if chown(&path, Some(12345), None).is_err() {
        return eprintln!("only root can give files away: not tried");
    }
    host.examine(&[]).must_say(
        "extension file",
        "failure",
        "belongs to user 12345, neither root nor",
        "chown root:root ",
    );
    chown(host.path("extensions.load"), Some(12345), None).unwrap();
    host.examine(&[]).must_say("autoload file", "warning", "belongs to user 12345, who can", "chown root:root ");
}

#[test]
fn an_extension_that_the_kernel_does_not_run_is_said() {
    let host = Host::new();
    let Some(tmpfs) = Tmpfs::mount(16 << 20) else { return };
    let path = tmpfs.path().join("remote_tls.ext");
    fs::copy(own_copy(&host), &path).unwrap();
    mode(tmpfs.path(), 0o755);
    host.file("extensions.load", path.to_str().unwrap());
    tmpfs.remount(MountFlags::NOEXEC);
    let examined = examine(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
    examined.must_say_only(
        "extension file",
        "failure",
        "is mounted noexec: osqueryd can't start it",
        "install it elsewhere",
    );
}

#[test]
fn what_only_allow_unsafe_lets_pass_is_a_warning() {
    let mut host = Host::new();
    mode(&own_copy(&host), 0o757);
    host.lines.push_str("--allow_unsafe\n");
    let examined = examine(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
    examined.must_say("extension file", "warning", "writable by everybody; only --allow_unsafe", "chmod o-w ");
    examined.must_say("flag combinations", "warning", "--allow_unsafe=true", "remove --allow_unsafe");
}
