//! `status`: one screen, and the same as JSON.

use serde_json::json;
use testkit::server::{Answer, Endpoint};

use super::run;
use crate::rig::{LIMIT, Rig, Setup, line};

#[test]
fn one_screen_says_how_the_extension_fares() {
    let rig = Rig::start();
    rig.config();
    rig.log(&line(1));
    rig.settled();
    rig.server.always(Endpoint::Log, Some(Answer::status(500, "the disk is full")));
    rig.log(&line(2));
    let json = rig.osqueryd.wait("a failure that is told", LIMIT, || {
        let json = run(&rig, &["status", "--json"]).json();
        (json["endpoints"][2]["consecutive_failures"].as_u64()? > 0).then_some(json)
    });
    let host = &json["enrollment"]["host_identifier"];
    assert_eq!(json["enrollment"]["enrolled"], true);
    assert_eq!(json["enrollment"]["server_name"], rig.server.hostname());
    assert_eq!(json["versions"]["extension"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        json["active_plugins"],
        json!({"config": ["remote_tls"], "logger": ["remote_tls"], "distributed": ["remote_tls"]})
    );
    let logger = &json["endpoints"][2];
    assert_eq!((&logger["name"], &logger["last_status"]), (&json!("logger"), &json!(500)));
    assert!(logger["last_success"].as_i64() > Some(0) && logger["last_failure"].as_i64() > Some(0), "{logger}");
    let results = &json["buffers"][0];
    assert_eq!(
        (&results["stream"], &results["waiting_lines"], &results["accepted"], &results["delivered"]),
        (&json!("results"), &json!(1), &json!(2), &json!(1))
    );
    assert!(json["worker_age"].as_u64() <= json["extension_age"].as_u64() && json["error"].is_null(), "{json}");

    let said = run(&rig, &["status"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{}", said.out);
    let wanted = [
        format!(", as {} at {}\n", host.as_str().unwrap(), rig.server.hostname()),
        "plugins     config remote_tls, logger remote_tls, distributed remote_tls\n".to_owned(),
        "  logger: the server answered HTTP 500".to_owned(),
        "the disk is full".to_owned(),
        "worker      runs for ".to_owned(),
    ];
    for wanted in wanted {
        assert!(said.out.contains(&wanted), "{wanted:?} is missing in\n{}", said.out);
    }
    assert!(said.out.lines().count() <= 24, "more than a screen:\n{}", said.out);
    let row = said.out.lines().find(|line| line.starts_with("results ")).unwrap();
    let numbers: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((numbers[1], &numbers[numbers.len() - 4..]), ("1", &["2", "1", "0", "0"][..]), "{row}");
}

/// Case operator: a status of "logger filesystem+remote_tls+stdout+syslog+tls" while osqueryd waited for a server that was down.
#[test]
fn plugins_that_osqueryd_has_not_chosen_yet_are_not_called_active() {
    let rig = Setup::new().flag("disable_distributed", "false").start();
    rig.osqueryd.undecided(true);
    let not_chosen = "not chosen yet: osqueryd waits for its first configuration";
    let text = run(&rig, &["status"]).out;
    let wanted = format!("plugins     config remote_tls, logger and distributed {not_chosen}\n");
    assert!(text.contains(&wanted), "{text}");
    let json = run(&rig, &["status", "--json"]).json();
    assert_eq!(json["active_plugins"], json!({"config": ["remote_tls"], "logger": null, "distributed": null}));
    let doctor = run(&rig, &["doctor"]).out;
    let line = doctor.lines().find(|line| line.contains("active plugins")).unwrap();
    assert!(line.contains("skip") && line.ends_with(not_chosen), "{line}");
    rig.osqueryd.options_set("disable_distributed", "true");
    let text = run(&rig, &["status"]).out;
    assert!(text.contains("config remote_tls, distributed none, logger not chosen yet"), "{text}");
}

#[test]
fn an_enrollment_that_fails_is_told_with_its_reason() {
    let rig = Setup::new().flag("tls_enroll_max_attempts", "1").start();
    rig.server.always(Endpoint::Enroll, Some(Answer::empty(403)));
    assert_eq!(rig.gen_config().code, 1);
    let said = run(&rig, &["status"]);
    assert_eq!(said.code, 0);
    let line = said.out.lines().find(|line| line.starts_with("enrolled ")).unwrap();
    assert!(line.contains("no, after 1 attempt: ") && line.contains("HTTP 403"), "{line}");
}

#[test]
fn what_does_not_answer_is_named_and_the_code_is_1() {
    let rig = Setup::new().osqueryd(|options| options.extensions.clear());
    let (_server, options, directory) = rig.finish();
    let osqueryd = testkit::osqueryd::Osqueryd::start_bare(options);
    osqueryd.wait("osqueryd's socket", LIMIT, || osqueryd.socket().exists().then_some(()));
    let status = |socket: &std::path::Path, arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::rig::BINARY);
        let output = command.arg("status").args(arguments).arg("--socket").arg(socket).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = status(&osqueryd.socket(), &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("the extension does not answer: osqueryd runs without the extension\n"), "{text}");
    let nowhere = directory.path().join("nowhere.em");
    let (code, text) = status(&nowhere, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["buffers"]), (Some(1), &json!(null)));
    assert!(json["error"].as_str().unwrap().contains("can't connect to osqueryd's extension manager"), "{json}");
}
