//! The server that lines are delivered to: TLS, HTTP/1.1 with kept connections, an answer to whatever comes, and a
//! count of what came. It is leaner than any real one, so that it is not what is measured, and a process of its own
//! with one core to itself.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use memchr::memmem;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use testkit::certs::default_authority;

use crate::cores;
use crate::lines;
use crate::processes::Processes;

/// Between two looks at how far a delivery is.
const LOOK: Duration = Duration::from_millis(20);

/// What came so far.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Counts {
    /// Connections whose TLS handshake was made.
    pub(crate) handshakes: u64,
    /// Log requests.
    pub(crate) requests: u64,
    /// Result lines in them.
    pub(crate) lines: u64,
    /// Bytes on the wire towards the server, TLS and all.
    pub(crate) received: u64,
    /// Bytes on the wire from the server.
    pub(crate) sent: u64,
    /// From the first connection to the last answer to a log request.
    pub(crate) time: Duration,
}

/// The sink's files, and the port that it has each time it is there.
pub(crate) struct SinkSetup {
    certificate: PathBuf,
    key: PathBuf,
    /// What `tls_server_certs` names.
    pub(crate) authority: PathBuf,
    pub(crate) port: u16,
}

impl SinkSetup {
    /// Writes the certificates into `directory` and finds a port.
    pub(crate) fn new(directory: &Path) -> Self {
        let (certificate, key) = default_authority().issue_server(&["localhost"]).write(directory, "sink");
        let authority = directory.join("ca.pem");
        std::fs::write(&authority, default_authority().cert_pem()).expect("the CA's certificate");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        Self { certificate, key, authority, port }
    }
}

/// A running sink. It ends with its drop, and with this process.
pub(crate) struct Sink {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sink {
    /// Starts one; returns when it listens.
    pub(crate) fn start(setup: &SinkSetup) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("sink")
            .arg(&setup.certificate)
            .arg(&setup.key)
            .arg(setup.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the sink starts");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut sink = Self { child, input, output };
        sink.counts();
        sink
    }

    /// What came so far.
    pub(crate) fn counts(&mut self) -> Counts {
        let mut line = String::new();
        self.input.write_all(b"\n").expect("the sink listens");
        self.output.read_line(&mut line).expect("the sink answers");
        serde_json::from_str(&line).expect("counts")
    }

    /// Waits until `lines` lines have come.
    ///
    /// # Panics
    /// When nothing comes for as long as `timeout`.
    pub(crate) fn wait(&mut self, lines: u64, timeout: Duration) -> Counts {
        let (mut before, mut changed) = (0, Instant::now());
        loop {
            let counts = self.counts();
            if counts.lines >= lines {
                return counts;
            }
            if counts.lines > before {
                (before, changed) = (counts.lines, Instant::now());
            }
            assert!(changed.elapsed() < timeout, "{before} of {lines} lines were delivered, and no more come");
            thread::sleep(LOOK);
        }
    }

    pub(crate) fn processes(&self) -> Processes {
        Processes::family(self.child.id())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sink's own process: serves until its standard input ends, and tells its counts at each line of that.
pub(crate) fn serve(certificate: &Path, key: &Path, port: u16) -> io::Result<()> {
    cores::keep_to_the_last();
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let config = Arc::new(config(certificate, key)?);
    let counts = Arc::new(Mutex::new((None, Counts::default())));
    let told = Arc::clone(&counts);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, counts) = (Arc::clone(&config), Arc::clone(&counts));
            thread::spawn(move || Connection::accept(stream, config, &counts)?.serve());
        }
    });
    for _ in io::stdin().lines() {
        let counts = told.lock().unwrap_or_else(PoisonError::into_inner).1;
        println!("{}", serde_json::to_string(&counts)?);
    }
    Ok(())
}

fn config(certificate: &Path, key: &Path) -> io::Result<ServerConfig> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).map_err(io::Error::other)?.collect();
    let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?.with_no_client_auth();
    builder.with_single_cert(chain.map_err(io::Error::other)?, key).map_err(io::Error::other)
}

/// When the first connection came, and the counts.
type Shared = Mutex<(Option<Instant>, Counts)>;

/// Counts what passes.
struct Counted {
    stream: TcpStream,
    received: u64,
    sent: u64,
}

struct Connection<'a> {
    stream: BufReader<StreamOwned<ServerConnection, Counted>>,
    counts: &'a Shared,
    /// Told to the counts so far.
    told: (u64, u64),
}

impl<'a> Connection<'a> {
    fn accept(stream: TcpStream, config: Arc<ServerConfig>, counts: &'a Shared) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        counts.lock().unwrap_or_else(PoisonError::into_inner).0.get_or_insert_with(Instant::now);
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, Counted { stream, received: 0, sent: 0 });
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        counts.lock().unwrap_or_else(PoisonError::into_inner).1.handshakes += 1;
        Ok(Self { stream: BufReader::with_capacity(64 << 10, stream), counts, told: (0, 0) })
    }

    fn serve(mut self) -> io::Result<()> {
        let (mut head, mut body) = (Vec::new(), Vec::new());
        while self.read_head(&mut head)? {
            let text = String::from_utf8_lossy(&head).to_lowercase();
            let length =
                text.split("\r\ncontent-length:").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
            body.resize(length.ok_or_else(|| io::Error::other("a request without a length"))?, 0);
            self.stream.read_exact(&mut body)?;
            let is_log = text.starts_with("post /log ");
            let lines = match is_log {
                true if text.contains("content-encoding: gzip") => count_compressed(&body)?,
                true => memmem::find_iter(&body, lines::BEGINNING).count(),
                false => 0,
            };
            self.answer(&text)?;
            self.count(is_log, lines as u64);
        }
        Ok(())
    }

    /// A request up to its empty line; false when the connection has ended.
    fn read_head(&mut self, head: &mut Vec<u8>) -> io::Result<bool> {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read_until(b'\n', head)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn answer(&mut self, head: &str) -> io::Result<()> {
        let body = match head.split(' ').nth(1) {
            Some("/enroll") => r#"{"node_key":"bench-node-key-1"}"#,
            Some("/config") => r#"{"schedule":{}}"#,
            _ => "{}",
        };
        let stream = self.stream.get_mut();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        stream.flush()
    }

    fn count(&mut self, is_log: bool, lines: u64) {
        let Counted { received, sent, .. } = self.stream.get_ref().sock;
        let mut shared = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, counts) = &mut *shared;
        counts.received += received - self.told.0;
        counts.sent += sent - self.told.1;
        self.told = (received, sent);
        if is_log {
            counts.requests += 1;
            counts.lines += lines;
            counts.time = first.map_or(Duration::ZERO, |first| first.elapsed());
        }
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.received += count as u64;
        Ok(count)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.sent += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn count_compressed(body: &[u8]) -> io::Result<usize> {
    let mut plain = Vec::with_capacity(8 * body.len());
    GzDecoder::new(body).read_to_end(&mut plain)?;
    Ok(memmem::find_iter(&plain, lines::BEGINNING).count())
}
