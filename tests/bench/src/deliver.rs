//! How fast a full journal becomes an empty one, and what goes over the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::Bench;
use crate::contenders::Contender;
use crate::lines;
use crate::report::{Bound, figure, mebibytes};
use crate::sink::{Counts, Sink, SinkSetup};
use crate::statistics::median;

/// How long nothing may come.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a line, in the main figures.
const SIZE: usize = 500;

/// Lines of a delivery: it takes a good part of a second.
const COUNT: u64 = 100_000;

/// osquery's default `logger_tls_max_lines`.
const LINES_A_REQUEST: u64 = 1024;

/// The built-in plugins' rates, measured on a running osqueryd (lines a second): by default, and at their best.
const BUILT_IN: [(&str, f64); 2] =
    [("built-in `tls`, by default (measured elsewhere)", 214.0), ("the same, at its best setting", 1380.0)];

/// How bodies are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
        }
    }
}

/// What one delivery came to.
struct Delivery {
    counts: Counts,
    /// Processor time of the sender.
    cpu: Duration,
    sink_cpu: Duration,
}

impl Delivery {
    fn lines_per_second(&self) -> f64 {
        self.counts.lines as f64 / self.counts.time.as_secs_f64()
    }
}

/// Measures deliveries, plain and compressed, and one of a million lines.
pub(crate) fn run(bench: &mut Bench) {
    bench.report.title("Deliver: a full journal to a TLS server on loopback, until it is empty");
    bench.report.say(&format!(
        "{} lines of {SIZE} B, `logger_tls_max_lines` {LINES_A_REQUEST}. The server does little more than count lines, and \
         has one core. The floor sends the same bodies over one kept connection from a program that has them in memory \
         (and compresses them, for gzip). The time is from the first connection to the last answer.",
        figure(COUNT as f64),
    ));
    let encodings = [Encoding::Plain, Encoding::Gzip];
    let rounds: Vec<Vec<(Delivery, Delivery)>> = (0..bench.rounds())
        .map(|_| encodings.iter().map(|encoding| (floor(COUNT, *encoding), ours(bench, COUNT, *encoding))).collect())
        .collect();
    let mut rows = Vec::new();
    for (index, encoding) in encodings.iter().enumerate() {
        let pairs: Vec<&(Delivery, Delivery)> = rounds.iter().map(|round| &round[index]).collect();
        let ratio = median(pairs.iter().map(|(floor, ours)| ours.lines_per_second() / floor.lines_per_second()));
        let name = encoding.name();
        rows.push(row(&format!("floor, {name}"), pairs.iter().map(|(floor, _)| floor).collect(), 1.0));
        rows.push(row(&format!("ours, {name}"), pairs.iter().map(|(_, ours)| ours).collect(), ratio));
        if *encoding == Encoding::Plain {
            let rate = median(pairs.iter().map(|(_, ours)| ours.lines_per_second()));
            bench.report.target("deliver: lines of 500 B, plain", Bound::AtLeast(500_000.0), "lines/s", rate);
        }
    }
    if !bench.quick {
        let million = ours(bench, 1_000_000, Encoding::Plain);
        let seconds = million.counts.time.as_secs_f64();
        rows.push(row(&format!("ours, plain, 1,000,000 lines: {seconds:.1} s"), vec![&million], f64::NAN));
    }
    for (name, rate) in BUILT_IN {
        let mut row = vec![name.to_owned(), figure(rate)];
        row.resize(HEAD.len(), String::new());
        rows.push(row);
    }
    bench.report.table(&HEAD, &rows);
}

const HEAD: [&str; 9] = [
    "",
    "lines/s",
    "to floor",
    "MiB/s of lines",
    "requests",
    "wire bytes a line",
    "handshakes",
    "CPU µs a line",
    "server's CPU µs a line",
];

fn row(name: &str, deliveries: Vec<&Delivery>, ratio: f64) -> Vec<String> {
    let middle = |value: fn(&Delivery) -> f64| median(deliveries.iter().map(|delivery| value(delivery)));
    vec![
        name.to_owned(),
        figure(middle(Delivery::lines_per_second)),
        if ratio.is_nan() { String::new() } else { format!("{ratio:.2} x") },
        figure(mebibytes(SIZE as f64 * middle(Delivery::lines_per_second))),
        format!("{:.0}", middle(|one| one.counts.requests as f64)),
        figure(middle(|one| (one.counts.received + one.counts.sent) as f64 / one.counts.lines as f64)),
        format!("{:.0}", middle(|one| one.counts.handshakes as f64)),
        figure(middle(|one| one.cpu.as_secs_f64() * 1e6 / one.counts.lines as f64)),
        figure(middle(|one| one.sink_cpu.as_secs_f64() * 1e6 / one.counts.lines as f64)),
    ]
}

fn ours(bench: &Bench, count: u64, encoding: Encoding) -> Delivery {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let compress = if encoding == Encoding::Gzip { "true" } else { "false" };
    let contender = Contender::ours(&bench.programs, &setup, &[("logger_tls_compress", compress)]);
    contender.fill(count, SIZE);
    drain(&contender, &setup, count)
}

/// The server comes: all that waits is delivered.
fn drain(contender: &Contender, setup: &SinkSetup, count: u64) -> Delivery {
    let before = contender.processes.threads();
    let mut sink = Sink::start(setup);
    let counts = sink.wait(count, WAIT_LIMIT);
    assert_eq!(counts.lines, count, "lines were delivered twice");
    Delivery { counts, cpu: contender.processes.threads().since(&before), sink_cpu: sink.processes().threads().sum() }
}

/// A client that has the bodies in memory.
fn floor(count: u64, encoding: Encoding) -> Delivery {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let bodies: Vec<String> = (0..count).step_by(LINES_A_REQUEST as usize).map(|first| body(first, count)).collect();
    let mut sink = Sink::start(&setup);
    let own = crate::processes::Processes::alone(std::process::id());
    let before = own.threads();
    let mut stream = BufReader::new(connect(&setup));
    for body in &bodies {
        post(&mut stream, body, encoding);
    }
    let cpu = own.threads().since(&before);
    let counts = sink.wait(count, WAIT_LIMIT);
    Delivery { counts, cpu, sink_cpu: sink.processes().threads().sum() }
}

fn body(first: u64, count: u64) -> String {
    let lines: Vec<String> = (first..count.min(first + LINES_A_REQUEST)).map(|n| lines::line(n, SIZE)).collect();
    format!("{{\"node_key\":\"bench\",\"log_type\":\"result\",\"data\":[{}]}}", lines.join(","))
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(setup: &SinkSetup) -> Tls {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(&setup.authority).expect("the CA's certificate");
    roots.add(authority).expect("a CA's certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions of TLS").with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TcpStream::connect(("127.0.0.1", setup.port)).expect("the sink listens");
    stream.set_nodelay(true).expect("an option of TCP");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a connection"), stream)
}

fn post(stream: &mut BufReader<Tls>, body: &str, encoding: Encoding) {
    let compressed;
    let (header, body) = match encoding {
        Encoding::Plain => ("", body.as_bytes()),
        Encoding::Gzip => {
            // As ours does.
            let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
            encoder.write_all(body.as_bytes()).expect("memory");
            compressed = encoder.finish().expect("memory");
            ("Content-Encoding: gzip\r\n", &compressed[..])
        }
    };
    let tls = stream.get_mut();
    let head = format!(
        "POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{header}Content-Length: {}\r\n\r\n",
        body.len()
    );
    tls.write_all(head.as_bytes())
        .and_then(|()| tls.write_all(body))
        .and_then(|()| tls.flush())
        .expect("the sink reads");
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).expect("an answer");
    }
    stream.read_exact(&mut [0; 2]).expect("an answer's body");
}
