//! `logger test`: a line on the whole way, and why it doesn't arrive.

use testkit::server::{Answer, Endpoint};

use super::run;
use crate::rig::{LIMIT, Rig, SECRET, Setup};

#[test]
fn a_marked_status_line_goes_the_whole_way() {
    let rig = Rig::start();
    rig.config();
    let said = run(&rig, &["logger", "test"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
    let message =
        said.out.strip_prefix("the server has the status line \"").unwrap().split_once("\", after ").unwrap().0;
    assert!(message.starts_with("osquery-remote-tls logger test "), "{message}");
    let statuses = rig.server.statuses();
    let line = statuses.iter().find(|line| line["message"] == message).expect("it is there when the command says so");
    assert_eq!((&line["filename"], &line["severity"]), (&"remote_tls".into(), &0.into()));
    let host = rig.osqueryd.query("SELECT host_identifier FROM remote_tls_enrollment").unwrap();
    assert_eq!(line["hostIdentifier"], *host[0]["host_identifier"]);
}

#[test]
fn a_line_that_does_not_arrive_is_told_with_what_the_endpoint_said() {
    let rig = Rig::start();
    rig.config();
    rig.server.always(Endpoint::Log, Some(Answer::status(503, format!("closed for {SECRET}"))));
    let said = run(&rig, &["logger", "test", "--timeout=3"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    for words in
        ["is not at the server after 3 s: the logger endpoint: the server answered HTTP 503", "closed for <hidden>"]
    {
        assert!(said.err.contains(words), "{words:?} is missing in {}", said.err);
    }
    // It is sent when it can be, and the next one is waited for behind it.
    rig.server.always(Endpoint::Log, None);
    assert_eq!(run(&rig, &["logger", "test"]).code, 0);
    assert_eq!(rig.server.statuses().len(), 2);
}

#[test]
fn a_line_that_is_set_aside_or_not_taken_is_told_at_once() {
    let rig = Setup::new().flag("logger_tls_max_linesize", "50").start();
    rig.config();
    let said = run(&rig, &["logger", "test"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.contains("the status line is set aside: it has more than 50 bytes"), "{}", said.err);

    let rig = Setup::new().flag("tls_disable_status_log", "true").start();
    rig.config();
    let said = run(&rig, &["logger", "test", "--timeout=1"]);
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.contains("takes no status lines (tls_disable_status_log"), "{}", said.err);
}

#[test]
fn without_the_extension_there_is_no_test() {
    let rig = Rig::start();
    rig.osqueryd.kill_worker();
    rig.osqueryd.wait("the manager's end", LIMIT, || {
        let said = run(&rig, &["logger", "test", "--timeout=1"]);
        assert_eq!((said.code, said.out.as_str()), (1, ""));
        said.err.contains("can't connect to osqueryd's extension manager").then_some(())
    });
}
