//! Tries what a package installed, in the root that it was installed into: `packaging/test` runs it there by chroot.
//!
//! `try-installed [COMMAND ARGUMENT...]` takes the installed example for doorman as osqueryd's flag file, lets the
//! stand-in autoload what `/etc/osquery/extensions.load` names, by osqueryd's rules, and waits until lines have
//! reached a reference server. The command, an upgrade, is run meanwhile: the new binary must be taken into use, and
//! no line be missed. What is asked of a root that is to be thrown away: it writes to `/etc/osquery` and `/var/osquery`.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde_json::json;
use testkit::certs::default_authority;
use testkit::osqueryd::{Options, Osqueryd, become_worker_if_asked};
use testkit::server::{self, Server};

const EXAMPLE: &str = "/usr/share/doc/osquery-remote-tls/examples/doorman.flags";
const FLAGFILE: &str = "/etc/osquery/osquery.flags";

/// No step takes longer on a machine that works.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    become_worker_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let server = start_server();
    write_flagfile(&server);
    let osqueryd = match Osqueryd::launch_with_arguments(options(), &[format!("--flagfile={FLAGFILE}")]) {
        Ok(osqueryd) => osqueryd,
        Err(error) => {
            eprintln!("try-installed: {error}");
            return ExitCode::FAILURE;
        }
    };
    osqueryd.wait_registered(LIMIT);
    wait_for_lines(&osqueryd, &server, 1);
    println!("autoloaded, enrolled, a line delivered");
    if let Some((command, arguments)) = arguments.split_first() {
        upgrade(&osqueryd, command, arguments);
        wait_for_lines(&osqueryd, &server, counters(&server).len() + 2);
        let counters = counters(&server);
        assert!(counters.iter().copied().eq(0..counters.len() as u64), "lines are missing among {counters:?}");
        println!("upgraded while it ran: both processes are of the new binary, no line is missing");
    }
    let report = osqueryd.stop();
    assert_eq!(report.exit_code(), Some(0), "{report:?}\n{}", osqueryd.transcript());
    ExitCode::SUCCESS
}

fn start_server() -> Server {
    let options = server::Options {
        enroll_secret: Some("installed".to_owned()),
        config: json!({"schedule": {"clock": {"query": "SELECT unix_time FROM time", "interval": 1}}}),
        ..server::Options::default()
    };
    Server::start(options).expect("the reference server")
}

/// The example as an operator would use it: with the server's name and certificate authority, and faster.
fn write_flagfile(server: &Server) {
    let example = fs::read_to_string(EXAMPLE).expect("the installed example");
    let placeholder = "--tls_hostname=doorman.example.org";
    assert!(example.contains(placeholder), "the example has no {placeholder}");
    let flags = example
        .replace(placeholder, &format!("--tls_hostname={}", server.hostname()))
        .replace("#--tls_server_certs=", "--tls_server_certs=")
        .replace("--logger_tls_period=10", "--logger_tls_period=1");
    fs::create_dir_all("/var/osquery").expect("osqueryd's directory");
    fs::write(FLAGFILE, flags + "--schedule_splay_percent=0\n").expect("the flag file");
    fs::write("/etc/osquery/server.pem", default_authority().cert_pem()).expect("the certificate authority");
    fs::write("/etc/osquery/enroll_secret", "installed\n").expect("the secret");
}

/// As the stand-in by hand, without `--allow_unsafe`: only what osqueryd accepts is started.
fn options() -> Options {
    let mut options = Options::new(&std::env::temp_dir());
    options.flags.clear();
    options.scheduler = true;
    options.allow_unsafe = false;
    options
}

fn upgrade(osqueryd: &Osqueryd, command: &str, arguments: &[String]) {
    let takeovers = || osqueryd.stderr_of_extensions().matches("has taken over").count();
    assert_eq!(takeovers(), 0, "{}", osqueryd.transcript());
    let status = Command::new(command).args(arguments).status().expect("the upgrade can be run");
    assert!(status.success(), "{command} ended with {status}");
    osqueryd.wait("the new binary to be taken into use", LIMIT, || (takeovers() > 0).then_some(()));
    // The first process follows after its worker; until it goes on it doesn't hear of osqueryd's end.
    let goes_on = || osqueryd.stderr_of_extensions().contains("as which osqueryd has registered this extension");
    osqueryd.wait("the new binary to go on in the first process", LIMIT, || goes_on().then_some(()));
    assert_eq!(osqueryd.registrations().len(), 1, "{}", osqueryd.transcript());
}

fn wait_for_lines(osqueryd: &Osqueryd, server: &Server, count: usize) {
    osqueryd.wait("lines at the server", LIMIT, || (counters(server).len() >= count).then_some(()));
}

/// The runs of the query that the server has lines of: osquery counts them.
fn counters(server: &Server) -> BTreeSet<u64> {
    server.results().iter().filter_map(|line| line["counter"].as_u64()).collect()
}
