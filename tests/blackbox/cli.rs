//! The command line, without any osqueryd.

use std::process::{Command, Output};

use crate::rig::BINARY;

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn version_and_help_go_to_stdout() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        concat!("osquery-remote-tls ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout);
    for flag in ["--socket", "--timeout", "--interval", "--verbose", "--buffer_path", "/var/osquery/osquery.em"] {
        assert!(text.contains(flag), "{flag} is missing in\n{text}");
    }
}

#[test]
fn a_wrong_command_line_is_named_and_ends_with_64() {
    for wrong in [&["--timeout", "soon"][..], &["stray"], &["doctor", "--no_such_flag"]] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(stderr(&output).contains(wrong[wrong.len() - 1].trim_start_matches('-')), "{}", stderr(&output));
    }
}

#[test]
fn switches_that_nobody_knows_are_named_and_end_nothing() {
    let output = run(&["--new_switch", "value", "--no_such=hunter2", "-socket=/nowhere/osquery.em", "--timeout=0"]);
    assert_eq!(output.status.code(), Some(1), "the manager isn't there");
    let said = stderr(&output);
    assert!(said.contains("this version has no switch --new_switch, --no_such; going on without"), "{said}");
    assert!(said.contains("/nowhere/osquery.em") && !said.contains("hunter2"), "{said}");
}

#[test]
fn without_osqueryd_it_says_so_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nobody.em");
    let output = run(&["-socket", socket.to_str().unwrap(), "-timeout=0"]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("nobody.em") && message.contains("no osqueryd to register with"), "{message}");
}
