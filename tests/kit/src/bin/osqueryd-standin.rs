//! `osqueryd-standin`: the stand-in osqueryd by hand, with a real flag file.
//!
//! `osqueryd-standin --flagfile F [--flag=value ...] [--allow_unsafe]` takes osqueryd's own arguments, and runs until
//! SIGTERM or SIGINT (exit code 0), or until osqueryd would end by itself (78 when its logger fails, 1 for arguments
//! it does not know). What happens goes to standard error.

use std::process::ExitCode;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use testkit::osqueryd::{Options, Osqueryd, become_worker_if_asked};

const USAGE: &str = "usage: osqueryd-standin [--flagfile PATH] [--FLAG=VALUE ...]\n\
    Takes osqueryd's flags. Paths of osqueryd's own (extensions_socket, database_path, extensions_autoload) are under\n\
    /var/osquery and /etc/osquery unless flags say otherwise; the database is a JSON file here.";

fn main() -> ExitCode {
    become_worker_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // Before anything starts, so that no signal is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let daemon = match Osqueryd::launch_with_arguments(options(), arguments) {
        Ok(daemon) => daemon,
        Err(error) => {
            eprintln!("{}", error.message);
            return Ok(ExitCode::from(u8::try_from(error.code).unwrap_or(1)));
        }
    };
    loop {
        if let Some(signal) = signals.pending().next() {
            eprintln!("osqueryd-standin: signal {signal}, stopping");
            break;
        }
        if daemon.is_over() {
            break;
        }
        daemon.wait_briefly(Duration::from_millis(100));
    }
    let report = daemon.stop();
    for extension in &report.extensions {
        eprintln!(
            "osqueryd-standin: {} took {:?} to end: {:?}",
            extension.path.display(),
            extension.took,
            extension.status
        );
    }
    let code = daemon.exit_code().unwrap_or(0);
    eprintln!("osqueryd-standin: exit code {code}");
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Everything runs, and flags come from the arguments alone.
fn options() -> Options {
    let dir = std::env::temp_dir();
    let mut options = Options::new(&dir);
    options.flags.clear();
    options.scheduler = true;
    options.status_relay = true;
    options.distributed = true;
    options.allow_unsafe = false;
    options.watch_interval = Duration::from_secs(3);
    options.restarts_worker = true;
    options.echo = true;
    options.capture = false;
    options
}
