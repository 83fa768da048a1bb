//! The reference server from the command line: osquery's remote API on localhost, and the conversation on stdout.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::PossibleValuesParser;
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::TempDir;
use testkit::certs::{CertificateKind, Identity};
use testkit::server::{Masking, Misbehaviour, Observer, Options, Recorded, Server, example_config};

const EXIT_USAGE: u8 = 64;
const EXIT_FAILURE: u8 = 1;
/// How soon a signal or the end of `--timeout` is noticed.
const NOTICE: Duration = Duration::from_millis(50);
const SECRET_NAME: &str = "enroll_secret";
const ENDPOINTS: [&str; 5] = [
    "--enroll_tls_endpoint=/enroll",
    "--config_tls_endpoint=/config",
    "--logger_tls_endpoint=/log",
    "--distributed_tls_read_endpoint=/distributed_read",
    "--distributed_tls_write_endpoint=/distributed_write",
];

/// A reference server for osquery's remote API, on localhost. Like the one in osquery's documentation it gives up the
/// node key at every third config request, so that enrolling again can be seen; without --use_enroll_secret any secret
/// will do.
#[derive(Parser)]
#[command(name = "reference-server", after_help = faults())]
struct Args {
    /// Speak TLS; without it, plain HTTP
    #[arg(long)]
    tls: bool,
    /// Keep connections alive; without it, each is closed behind its answer
    #[arg(long)]
    persist: bool,
    /// End after this many seconds; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    /// The server's certificate chain, PEM; without it one is made
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The server's private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The authority of client certificates, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Demand the enroll secret
    #[arg(long = "use_enroll_secret")]
    use_enroll_secret: bool,
    /// The file that holds the enroll secret; without it one is made
    #[arg(long = "enroll_secret", value_name = "FILE")]
    enroll_secret: Option<PathBuf>,
    /// Demand a client certificate of --ca on every connection
    #[arg(long, requires = "ca", requires = "tls")]
    verify_client_cert: bool,
    /// Refuse log requests that aren't compressed by gzip
    #[arg(long)]
    require_gzip: bool,
    /// Answer a config request shortly where its etag says that nothing has changed
    #[arg(long)]
    etags: bool,
    /// Show secrets and node keys
    #[arg(long)]
    show_secrets: bool,
    /// The kind of certificate to make
    #[arg(long, value_name = "KIND", default_value = "good", conflicts_with = "cert", value_parser = certificate_kinds())]
    certificate: String,
    /// Misbehave: ENDPOINT=FAULT or ENDPOINT=FAULT*TIMES, once or more often (see below)
    #[arg(long, value_name = "ENDPOINT=FAULT")]
    misbehave: Vec<Misbehaviour>,
    /// Write into this directory what a host of this server needs: osquery.flags, and the extension that was built beside
    /// this program
    #[arg(long, value_name = "DIRECTORY", requires = "tls")]
    host: Option<PathBuf>,
    /// The port on localhost; 0 for any
    port: u16,
}

/// The misbehaviours, for the help.
fn faults() -> String {
    let mut text = "Endpoints: enroll, config, log, read, write, any. Faults:\n".to_owned();
    for (name, meaning) in Misbehaviour::FAULTS {
        text.push_str(&format!("  {name:<20} {meaning}\n"));
    }
    text
}

fn certificate_kinds() -> PossibleValuesParser {
    PossibleValuesParser::new(CertificateKind::ALL.map(|(name, _)| name))
}

/// An exit code, and the line that says why.
type Failure = (u8, String);

fn main() -> ExitCode {
    match Args::try_parse() {
        Ok(args) => match run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err((code, line)) => fail(code, &line),
        },
        Err(error) if error.use_stderr() => {
            // clap says what is wrong on the first lines, up to a blank one.
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
            fail(EXIT_USAGE, lines.join(" ").trim_start_matches("error: "))
        }
        Err(help) => {
            let _ = help.print();
            ExitCode::SUCCESS
        }
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    eprintln!("reference-server: {line}");
    ExitCode::from(code)
}

fn run(args: &Args) -> Result<(), Failure> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(|error| failure(&"signals", &error))?;
    }
    let directory = TempDir::with_prefix("reference-server-").map_err(|error| failure(&"temporary files", &error))?;
    let mut hints = Vec::new();
    let options = Options {
        port: args.port,
        identity: identity(args, directory.path(), &mut hints)?,
        client_ca_pem: client_ca(args)?,
        enroll_secret: enroll_secret(args, directory.path(), &mut hints)?,
        secret_name: SECRET_NAME.to_owned(),
        keep_alive: args.persist,
        require_gzip: args.require_gzip,
        invalid_every: Some(3),
        etags: args.etags,
        config: example_config(),
        tls: args.tls,
        observer: Some(printer(args.show_secrets)),
        ..Options::default()
    };
    let server = Server::start(options).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => (EXIT_USAGE, error.to_string()),
        _ => failure(&format!("port {}", args.port), &error),
    })?;
    for misbehaviour in &args.misbehave {
        misbehaviour.apply(&server);
    }
    if let Some(host) = &args.host {
        make_host(host, &flags(&server, &hints)).map_err(|error| failure(&host.display(), &error))?;
    }
    announce(args, &server, &hints);
    let end = (args.timeout > 0).then(|| Instant::now() + Duration::from_secs(args.timeout));
    let mut failed_handshakes = 0;
    while !ended.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
        thread::sleep(NOTICE);
        for error in server.handshake_errors().iter().skip(failed_handshakes) {
            print_flushed(&format!("-- handshake failed: {error}\n"));
            failed_handshakes += 1;
        }
        // Requests have been shown; a server that runs for days must not pile them up.
        server.forget_requests();
    }
    Ok(())
}

/// The certificate and key of `--cert` and `--key`, or new ones whose authority is written for the client.
fn identity(args: &Args, directory: &Path, hints: &mut Vec<String>) -> Result<Identity, Failure> {
    if let (Some(cert), Some(key)) = (&args.cert, &args.key) {
        return Ok(Identity { cert_pem: text_of(cert)?, key_pem: text_of(key)? });
    }
    let kind = CertificateKind::ALL.into_iter().find(|(name, _)| *name == args.certificate);
    let (identity, bundle) = kind.map_or(CertificateKind::Good, |(_, kind)| kind).make();
    if args.tls {
        let ca = directory.join("ca.pem");
        fs::write(&ca, bundle).map_err(|error| failure(&ca.display(), &error))?;
        let (cert, key) = identity.write(directory, "server");
        hints.push(format!("# certificate {}, key {}", cert.display(), key.display()));
        hints.push(format!("--tls_server_certs={}", ca.display()));
    }
    Ok(identity)
}

fn client_ca(args: &Args) -> Result<Option<String>, Failure> {
    let pem = args.ca.as_deref().map(text_of).transpose()?;
    Ok(pem.filter(|_| args.verify_client_cert))
}

/// The secret that is demanded, if any: the file's, or a new one that is written for the client.
fn enroll_secret(args: &Args, directory: &Path, hints: &mut Vec<String>) -> Result<Option<String>, Failure> {
    let given = args.enroll_secret.as_deref().map(text_of).transpose()?;
    if !args.use_enroll_secret {
        return Ok(None);
    }
    if let Some(secret) = given {
        return Ok(Some(secret.trim().to_owned()));
    }
    let secret = format!("{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2));
    let file = directory.join("enroll_secret");
    fs::write(&file, &secret).map_err(|error| failure(&file.display(), &error))?;
    hints.push(format!("--enroll_secret_path={}", file.display()));
    Ok(Some(secret))
}

fn text_of(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| (EXIT_USAGE, format!("{}: {error}", path.display())))
}

fn failure(what: &dyn std::fmt::Display, error: &dyn std::fmt::Display) -> Failure {
    (EXIT_FAILURE, format!("{what}: {error}"))
}

/// The flags that go with it, and what is to be known of them, a line each.
fn flags(server: &Server, hints: &[String]) -> Vec<String> {
    let mut flags = vec![format!("--tls_hostname={}", server.hostname())];
    flags.extend_from_slice(hints);
    flags.extend(ENDPOINTS.map(str::to_owned));
    flags
}

/// A host's files: what `--flagfile` is to name, and what that names.
fn make_host(directory: &Path, flags: &[String]) -> io::Result<()> {
    let built = std::env::current_exe()?.with_file_name("osquery-remote-tls");
    fs::create_dir_all(directory)?;
    let directory = directory.canonicalize()?;
    let extension = directory.join("remote_tls.ext");
    fs::copy(&built, &extension)
        .map_err(|error| io::Error::new(error.kind(), format!("{} is not there: cargo build", built.display())))?;
    let load = directory.join("extensions.load");
    fs::write(&load, format!("{}\n", extension.display()))?;
    let mut text: String = flags.iter().map(|flag| format!("{flag}\n")).collect();
    for plugin in ["config", "logger", "distributed"] {
        text.push_str(&format!("--{plugin}_plugin=remote_tls\n"));
    }
    text.push_str(&format!("--disable_distributed=false\n--extensions_autoload={}\n", load.display()));
    for (flag, file) in
        [("extensions_socket", "osquery.em"), ("database_path", "osquery.db"), ("pidfile", "osqueryd.pid")]
    {
        text.push_str(&format!("--{flag}={}\n", directory.join(file).display()));
    }
    fs::write(directory.join("osquery.flags"), text)
}

fn announce(args: &Args, server: &Server, hints: &[String]) {
    let protocol = if args.tls { "HTTPS" } else { "HTTP" };
    let mut text = format!("reference-server: {protocol} on localhost, port {}\n", server.port());
    if args.tls {
        text.push_str("osquery flags:\n");
        text.extend(flags(server, hints).iter().map(|flag| format!("  {flag}\n")));
        if let Some(host) = &args.host {
            text.push_str(&format!("a host: osqueryd --flagfile {}\n", host.join("osquery.flags").display()));
        }
    } else {
        text.extend(hints.iter().map(|hint| format!("  {hint}\n")));
    }
    print_flushed(&text);
}

/// What shows each request: its line, its decoded body and the reply.
fn printer(show_secrets: bool) -> Observer {
    let masking = (!show_secrets).then(|| Masking::new(SECRET_NAME));
    Arc::new(move |request: &Recorded| {
        let (target, body, reply) = match masking.as_ref().map(|masking| masking.shown(request)) {
            Some(shown) => (shown.target, shown.body, shown.reply),
            None => {
                let body = String::from_utf8_lossy(&request.body).into_owned();
                (request.target.clone(), body, request.answer_body.clone())
            }
        };
        let line = format!("{} {target} {}", request.method, request.version);
        print_flushed(&format!("-- {line}\n   request: {body}\n   reply {}: {reply}\n", request.answer_status));
    })
}

/// One write a request: requests that come at once don't mix. A reader that has gone is no reason to stop.
fn print_flushed(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
