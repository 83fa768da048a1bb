//! The command line, without any osqueryd.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Output, Stdio};

use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};

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
fn the_help_has_commands_first_then_its_groups_and_examples() {
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let parts = [
        "\nUsage:",
        "\nCommands:\n",
        "  doctor ",
        "  status ",
        "  flare ",
        "\nAs osqueryd starts it:\n",
        "--socket <PATH>",
        "\nSettings, for our flag file:\n",
        "--buffer_path <PATH>",
        "\nExamples:\n",
        "osquery-remote-tls doctor ",
    ];
    let at = parts.map(|part| help.find(part).unwrap_or_else(|| panic!("{part:?} is missing in\n{help}")));
    assert!(at.is_sorted(), "{at:?}\n{help}");
    assert!(!help.contains("--resume"), "{help}");
}

/// From a newcomer's report on issue 12: the help was as wide as its longest sentence.
#[test]
fn every_help_fits_a_terminal_of_80_columns() {
    for command in
        ["", "doctor", "refresh", "status", "buffer", "rejected", "logger", "flare", "buffer discard", "logger test"]
    {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let help = String::from_utf8(run(&arguments).stdout).unwrap();
        let too_long: Vec<&str> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(help.contains("Usage:") && too_long.is_empty(), "{command}: {too_long:#?}");
    }
}

#[test]
fn without_a_word_on_a_terminal_it_says_what_it_is() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let side = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let other = || Stdio::from(side.try_clone().unwrap());
    let status = Command::new(BINARY).stdin(other()).stdout(other()).stderr(other()).status().unwrap();
    let mut said = [0; 4096];
    let length = File::from(terminal).read(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]);
    assert_eq!(status.code(), Some(64), "{said}");
    assert!(said.lines().all(|line| line.len() <= 80), "{said}");
    assert!(said.starts_with("osquery-remote-tls ") && said.contains("osquery-remote-tls doctor "), "{said}");
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
fn unknown_switches_are_named_and_end_nothing() {
    let output = run(&["--new_switch", "value", "--no_such=hunter2", "-socket=/nowhere/osquery.em", "--timeout=0"]);
    assert_eq!(output.status.code(), Some(1), "the manager isn't there");
    let said = stderr(&output);
    assert!(said.contains("this version has no switch --new_switch, --no_such; going on without"), "{said}");
    assert!(said.contains("/nowhere/osquery.em") && !said.contains("hunter2"), "{said}");
}

#[test]
fn without_osqueryd_it_says_so_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("no-osqueryd.em");
    let output = run(&["-socket", socket.to_str().unwrap(), "-timeout=0"]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("no-osqueryd.em") && message.contains("no osqueryd to register with"), "{message}");
}
