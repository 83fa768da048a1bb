//! Headers of an operator's own, from a file.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;
use testkit::proxy::{Behaviour, Proxy};
use testkit::server::{Answer, Endpoint};

use crate::rig::{LIMIT, Rig, Setup, line, mode};
use crate::tables::TABLES;

const TOKEN: &str = "t0ken/of the+tests";
const HEADERS: &str = "# an access proxy's\nX-Access-Id: the-id-1\n\nX-Access-Token: t0ken/of the+tests\n";

/// With the file, which its owner alone reads.
fn setup(text: &str) -> (Setup, PathBuf) {
    let setup = Setup::new().flag("config_tls_max_attempts", "1").flag("tls_enroll_max_attempts", "1");
    let file = setup.file("headers", text);
    mode(&file, 0o600);
    (setup.own_flag(&format!("--tls_headers_file={}", file.display())), file)
}

/// Every kind of request is made.
fn ask_everything(rig: &Rig) {
    rig.config();
    rig.call("distributed", &[("action", "getQueries")]);
    rig.call("distributed", &[("action", "writeResults"), ("results", "{\"queries\":{},\"statuses\":{}}")]);
    rig.log(&line(1));
    rig.delivered(1);
}

#[test]
fn every_request_to_the_server_has_them_and_no_proxy_s() {
    let proxy = Proxy::start(Behaviour::Tunnel).unwrap();
    let (setup, _) = setup(HEADERS);
    let rig = setup.flag("proxy_hostname", &format!("127.0.0.1:{}", proxy.port())).start();
    rig.server.script(Endpoint::Config, [Answer::empty(307).header("Location", "/elsewhere/config")]);
    ask_everything(&rig);
    let requests = rig.server.requests();
    assert!(requests.len() >= 6, "{}", rig.server.transcript());
    for endpoint in
        [Endpoint::Enroll, Endpoint::Config, Endpoint::Log, Endpoint::DistributedRead, Endpoint::DistributedWrite]
    {
        assert!(requests.iter().any(|request| request.endpoint == endpoint), "{endpoint:?}");
    }
    for request in requests {
        assert_eq!(request.header("x-access-id"), Some("the-id-1"), "{}", request.target);
        assert_eq!(request.header("x-access-token"), Some(TOKEN), "{}", request.target);
        assert_eq!(request.header("content-type"), Some("application/json"));
    }
    for connect in proxy.connects() {
        assert!(!connect.names.iter().any(|name| name.starts_with("x-")), "{:?}", connect.names);
    }
}

#[test]
fn an_operator_s_authorization_takes_the_place_of_ours() {
    let (setup, _) = setup("Authorization: Bearer t0ken-of-the-tests\n");
    let rig = setup.start();
    rig.config();
    for request in rig.server.requests() {
        let given: Vec<_> = request.headers.iter().filter(|(name, _)| name == "authorization").collect();
        assert_eq!(given, [&("authorization".to_owned(), "Bearer t0ken-of-the-tests".to_owned())]);
    }
}

#[test]
fn what_was_put_in_the_file_s_place_counts_from_the_next_request_on() {
    let (setup, file) = setup(HEADERS);
    let rig = setup.start();
    rig.config();
    let new = file.with_extension("new");
    fs::write(&new, "X-Access-Token: another-2\n").unwrap();
    mode(&new, 0o600);
    fs::rename(&new, &file).unwrap();
    rig.config();
    let request = rig.server.requests_to(Endpoint::Config).pop().unwrap();
    assert_eq!((request.header("x-access-token"), request.header("x-access-id")), (Some("another-2"), None));
    fs::write(&file, HEADERS).unwrap();
    rig.config();
    assert_eq!(rig.server.requests_to(Endpoint::Config).pop().unwrap().header("x-access-token"), Some(TOKEN));
}

#[test]
fn their_values_are_shown_nowhere() {
    let (setup, _) = setup(HEADERS);
    let log = setup.path().join("own.log");
    let rig = setup
        .own_flag(&format!("--log_file={}", log.display()))
        .flag("verbose", "true")
        .flag("tls_dump", "true")
        .osqueryd(|options| options.verbose = true)
        .start();
    rig.config();
    let echo = json!({"error": format!("no access for the-id-1 with {TOKEN}")}).to_string();
    let mut shown = String::new();
    for text in [echo.clone(), echo.replace('/', "\\/"), format!("<p>{TOKEN}"), "t0ken%2Fof%20the%2Btests".to_owned()] {
        rig.server.always(Endpoint::DistributedWrite, Some(Answer::status(403, text)));
        shown += &rig.call("distributed", &[("action", "writeResults"), ("results", "{}")]).message;
    }
    rig.server.always(Endpoint::Log, Some(Answer::status(403, echo)));
    rig.log(&line(1));
    rig.said("result lines can't be delivered");
    for table in TABLES {
        let rows = rig.osqueryd.query(&format!("SELECT * FROM {table}")).unwrap();
        shown.extend(rows.into_iter().flatten().map(|(column, value)| format!("{table}.{column} = {value}\n")));
    }
    shown += &rig.stderr();
    shown += &fs::read_to_string(log).unwrap();
    for value in [TOKEN, "t0ken", "the-id-1"] {
        assert!(!shown.contains(value), "{value} is shown in\n{shown}");
    }
    assert!(shown.contains("no access for <hidden> with <hidden>"), "{shown}");
}

/// A file that is not to be used: what is wrong with it is said, and no request is made.
fn refused(spoil: impl FnOnce(&Path), said: &str) {
    let (setup, file) = setup(HEADERS);
    spoil(&file);
    let rig = setup.start();
    let message = rig.refusal();
    assert!(message.contains(said) && message.contains("--tls_headers_file="), "{said:?} is missing in {message}");
    assert!(!message.contains("t0ken"), "{message}");
    rig.log(&line(1));
    // It is judged anew each time.
    assert_eq!(rig.server.connections(), 0, "{}", rig.server.transcript());
    let _ = fs::remove_file(&file);
    fs::write(&file, HEADERS).unwrap();
    mode(&file, 0o600);
    rig.osqueryd.wait("a configuration", LIMIT, || (rig.gen_config().code == 0).then_some(()));
    rig.delivered(1);
}

#[test]
fn a_file_that_others_can_read_or_replace_is_refused_and_nothing_is_sent() {
    for others in [0o644, 0o640, 0o604, 0o602] {
        refused(|file| mode(file, others), &format!("others can read or change it (mode {others:04o}): chmod 0600 "));
    }
    refused(|file| chown(file, Some(65534), None).unwrap(), "not to be trusted");
    refused(
        |file| {
            let open = file.with_extension("d");
            fs::create_dir(&open).unwrap();
            mode(&open, 0o777);
            fs::rename(file, open.join("headers")).unwrap();
            symlink(open.join("headers"), file).unwrap();
        },
        "not to be trusted: others may write in ",
    );
    refused(|file| fs::remove_file(file).unwrap(), "No such file");
}

#[test]
fn a_line_that_is_none_is_named_by_its_number_and_nothing_is_sent() {
    for (text, said) in [
        ("X-A: b\nt0ken-alone\n", "no \"Name: value\" in line 2"),
        ("X-A: t0ken\x01\n", "a value that can't be one (printable ASCII, of 1 to 4096 characters) in line 1"),
        ("User-Agent: t0ken\n", "the header user-agent, which is the extension's own to set, in line 1"),
        ("Transfer-Encoding: t0ken\n", "the header transfer-encoding, which is the extension's own"),
        ("X-A: b\nx-a: t0ken\n", "a header for the second time in line 2"),
    ] {
        refused(|file| fs::write(file, text).unwrap(), said);
    }
}
