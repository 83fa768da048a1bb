//! Trust and client authentication: osquery's PEM files made into rustls connections, as a connector for ureq.
//!
//! The files are looked at again before each request, so that a rotated certificate, key or bundle is used at once:
//! connections that were made with others are not used again. While a new file is unusable the old contents go on
//! working, and that is said once.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::deadline::Deadline;
use super::pem;
use super::trust::{ServerVerifier, TrustKind, expiry, explain};
use crate::files::FileLook;
use crate::lock::Mutex;
use crate::settings::{ClientIdentity, DEFAULT_SERVER_CERTS, Pin, SettingError, TlsSettings};

/// Why no TLS connection could be made.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum TlsError {
    /// A file of ours can't be used.
    #[error("--{flag}={path} can't be used: {reason}", path = .path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `tls_hostname` is no name that a certificate could be checked against.
    #[error("{0} is not a name that a certificate can be checked against")]
    Name(String),
    /// The two sides did not agree, or the server's certificate isn't trusted.
    #[error("TLS handshake failed: {}", explain(.0))]
    Handshake(rustls::Error),
}

/// When the certificates in use expire, in Unix seconds; 0 while none is known.
#[derive(Debug, Default)]
pub struct Expiries {
    /// The server's, as verified in the last handshake.
    pub server: AtomicI64,
    /// `tls_client_cert`, as last read.
    pub client: AtomicI64,
}

/// Bytes that went through connections, within TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that went to servers.
    pub sent: u64,
    /// Bytes that came from servers.
    pub received: u64,
}

impl Traffic {
    /// What went through since then.
    #[must_use]
    pub fn since(self, then: Self) -> Self {
        Self { sent: self.sent - then.sent, received: self.received - then.received }
    }
}

thread_local! {
    /// What this thread has sent and received: a request is made by one thread from its beginning to its end.
    static TRAFFIC: Cell<Traffic> = const { Cell::new(Traffic { sent: 0, received: 0 }) };
    /// Whether an answer came before the whole request was sent.
    static ANSWERED_EARLY: Cell<bool> = const { Cell::new(false) };
}

/// Whether an answer came to this thread before its whole request was sent, since the last time this was asked.
pub(super) fn answered_early() -> bool {
    ANSWERED_EARLY.take()
}

/// What this thread has sent and received so far.
#[must_use]
pub(super) fn traffic() -> Traffic {
    TRAFFIC.get()
}

/// Wraps a connection in TLS, as the [`TlsSettings`] say.
pub(super) struct TlsConnector {
    trust: Arc<Trust>,
    max_age: Duration,
}

/// What the files make, kept until they change.
struct Trust {
    files: Files,
    loaded: Mutex<Option<Loaded>>,
}

/// Sees what goes on in a handshake.
pub(super) trait Watch: Send + Sync {
    /// Puts a verifier around ours.
    fn verifier(&self, judge: Arc<dyn ServerCertVerifier>) -> Arc<dyn ServerCertVerifier>;

    /// Puts a resolver around ours, which is asked when the server wants a client certificate.
    fn resolver(&self, resolver: Arc<dyn ResolvesClientCert>) -> Arc<dyn ResolvesClientCert>;
}

/// The files that trust and client authentication come from.
struct Files {
    server_certs: PathBuf,
    client: Option<ClientIdentity>,
    pins: Vec<Pin>,
    expiries: Arc<Expiries>,
    watch: Option<Box<dyn Watch>>,
}

/// What was made of the files, and how they looked then.
struct Loaded {
    stamp: Vec<Stamp>,
    config: Arc<ClientConfig>,
}

/// A file, and how it looked.
#[derive(PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// `None` when it can't be looked at.
    look: Option<FileLook>,
}

impl TlsConnector {
    /// A connector for these settings; the files are read at the first connection. It tells when certificates expire; `watch`
    /// puts a verifier around ours that sees the chain which the server presents before it is judged.
    ///
    /// # Errors
    /// `tls_pins` can't be used.
    pub(super) fn with(
        settings: &TlsSettings,
        client: Option<ClientIdentity>,
        expiries: Arc<Expiries>,
        watch: Option<Box<dyn Watch>>,
    ) -> Result<Self, SettingError> {
        let (server_certs, pins) = (settings.server_certs.clone(), settings.pins.clone()?);
        let files = Files { server_certs, client, pins, expiries, watch };
        let trust = Arc::new(Trust { files, loaded: Mutex::new(None) });
        Ok(Self { trust, max_age: settings.session_timeout })
    }
}

/// Whether a connection can be tried with the files as they are.
///
/// # Errors
/// One can't be used.
pub fn check_files(settings: &TlsSettings, client: Option<ClientIdentity>) -> Result<(), TlsError> {
    let server_certs = settings.server_certs.clone();
    Files { server_certs, client, pins: Vec::new(), expiries: Arc::default(), watch: None }.load().map(drop)
}

impl Trust {
    /// The rustls configuration that the files make now.
    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let stamp = self.files.stamp();
        let mut loaded = self.loaded.lock();
        match loaded.as_mut() {
            Some(loaded) if loaded.stamp == stamp => Ok(Arc::clone(&loaded.config)),
            Some(old) => {
                match self.files.load() {
                    Ok(config) => {
                        log::info!("TLS certificates changed on disk: using the new ones");
                        old.config = config;
                    }
                    Err(error) => log::error!("{error}; the certificates read before go on being used"),
                }
                old.stamp = stamp;
                Ok(Arc::clone(&old.config))
            }
            None => {
                let config = self.files.load()?;
                *loaded = Some(Loaded { stamp, config: Arc::clone(&config) });
                Ok(config)
            }
        }
    }
}

impl Files {
    fn load(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(self.verifier()?);
        let verifier = match &self.watch {
            None => verifier,
            Some(watch) => watch.verifier(verifier),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Handshake)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut client_expiry = 0;
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let certificates = certificates("tls_client_cert", &client.cert)?;
                let key = pem::private_key(&read("tls_client_key", &client.key)?).map_err(|_| {
                    unusable("tls_client_key", &client.key, "it holds no unencrypted private key in PEM")
                })?;
                client_expiry = certificates.first().and_then(expiry).unwrap_or_default();
                builder.with_client_auth_cert(certificates, key).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => unusable("tls_client_cert", &client.cert, &explain(&error)),
                    other => unusable("tls_client_cert", &client.cert, &format!("with its key: {other}")),
                })?
            }
        };
        // A session that is resumed shows no certificate, and so none that could be judged.
        config.resumption = Resumption::disabled();
        self.expiries.client.store(client_expiry, Ordering::Relaxed);
        if let Some(watch) = &self.watch {
            config.client_auth_cert_resolver = watch.resolver(config.client_auth_cert_resolver);
        }
        Ok(Arc::new(config))
    }

    fn verifier(&self) -> Result<ServerVerifier, TlsError> {
        const FLAG: &str = "tls_server_certs";
        let path = &self.server_certs;
        let bundle = bundle(path)?;
        let kind = if path == Path::new(DEFAULT_SERVER_CERTS) { TrustKind::Default } else { TrustKind::Explicit };
        let verifier = ServerVerifier::new(bundle, kind).map_err(|reason| unusable(FLAG, path, &reason))?;
        Ok(verifier.pinned(self.pins.clone()))
    }

    fn stamp(&self) -> Vec<Stamp> {
        let client = self.client.iter().flat_map(|client| [client.cert.clone(), client.key.clone()]);
        bundle_files(&self.server_certs)
            .into_iter()
            .chain(client)
            .map(|path| Stamp { look: FileLook::of(&path), path })
            .collect()
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| unusable(flag, path, &error.to_string()))
}

/// The certificates that `tls_server_certs` names: those of a file, or of the files in a directory.
pub fn bundle(server_certs: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const FLAG: &str = "tls_server_certs";
    if server_certs.is_dir() {
        // What else lies in the directory doesn't matter.
        let files = bundle_files(server_certs);
        return Ok(files.iter().flat_map(|file| certificates(FLAG, file).unwrap_or_default()).collect());
    }
    certificates(FLAG, server_certs)
}

/// The files that make up the trust: the file itself, or those in the directory.
fn bundle_files(server_certs: &Path) -> Vec<PathBuf> {
    match fs::read_dir(server_certs) {
        Ok(entries) => {
            let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            files.sort();
            files
        }
        Err(_) => vec![server_certs.to_owned()],
    }
}

/// The certificates of a PEM file that this flag names; at least one.
pub fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    match pem::certificates(&read(flag, path)?) {
        Ok(certificates) if certificates.is_empty() => Err(unusable(flag, path, "it holds no certificate in PEM")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(flag, path, &format!("its PEM is damaged ({error})"))),
    }
}

fn unusable(flag: &'static str, path: &Path, reason: &str) -> TlsError {
    TlsError::File { flag, path: path.to_owned(), reason: reason.to_owned() }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        // The way to a proxy is plain.
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let config = self.trust.config().map_err(|error| ureq::Error::Other(error.into()))?;
        let host = details.uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| ureq::Error::Other(TlsError::Name(host.to_owned()).into()))?;
        let mut connection =
            ClientConnection::new(Arc::clone(&config), name).map_err(|error| handshake_error(&error))?;
        let mut socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        socket.set_timeout(Deadline::of(details).left()?);
        if let Err(error) = connection.complete_io(&mut socket) {
            return Err(broken(error, &mut connection, &mut socket));
        }
        if let Some(expiry) = connection.peer_certificates().and_then(<[_]>::first).and_then(expiry) {
            self.trust.files.expiries.server.store(expiry, Ordering::Relaxed);
        }
        Ok(Some(Either::B(TlsTransport {
            answered_early: false,
            buffers: LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size()),
            stream: StreamOwned::new(connection, socket),
            made: Instant::now(),
            max_age: self.max_age,
            made_with: config,
            trust: Arc::clone(&self.trust),
        })))
    }
}

fn handshake_error(error: &rustls::Error) -> ureq::Error {
    ureq::Error::Other(TlsError::Handshake(error.clone()).into())
}

/// A TLS error within an I/O error, in our words; other I/O errors as they are.
fn named(error: io::Error) -> ureq::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => handshake_error(tls),
        None => error.into(),
    }
}

/// Why the connection broke. In TLS 1.3 a client learns only while it sends its first request that its certificate
/// was refused or missed: the alert lies behind the error in writing.
fn broken(error: io::Error, connection: &mut ClientConnection, socket: &mut TransportAdapter) -> ureq::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) {
        while connection.read_tls(socket).is_ok_and(|read| read > 0) {
            if let Err(alert) = connection.process_new_packets() {
                return handshake_error(&alert);
            }
        }
    }
    named(error)
}

/// A connection within TLS.
pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    /// The server has answered and gone before it had the whole request: what was received is all that there is.
    answered_early: bool,
    made: Instant,
    max_age: Duration,
    made_with: Arc<ClientConfig>,
    trust: Arc<Trust>,
}

impl TlsTransport {
    /// The version and the suite that both sides agreed on.
    pub(super) fn agreed(&self) -> String {
        let (version, suite) = (self.stream.conn.protocol_version(), self.stream.conn.negotiated_cipher_suite());
        let version = match version {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS 1.3",
        };
        suite.map_or_else(|| version.to_owned(), |suite| format!("{version}, {:?}", suite.suite()))
    }

    /// Whether something was received that was not read yet.
    fn has_input(&mut self) -> bool {
        self.stream.conn.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0)
    }

    /// What broke while writing is no error when the server has answered before it had the whole request. rustls tells
    /// of an error in writing only at the next call, reading included.
    fn settle_early(&mut self, error: io::Error) -> Result<(), ureq::Error> {
        let error = broken(error, &mut self.stream.conn, &mut self.stream.sock);
        self.answered_early = self.has_input();
        ANSWERED_EARLY.set(self.answered_early);
        if self.answered_early { Ok(()) } else { Err(error) }
    }

    /// Reads what the server has sent into the input buffer: 0 bytes are the end.
    fn read(&mut self) -> io::Result<usize> {
        let input = self.buffers.input_append_buf();
        // The stream would write first, what the server doesn't read.
        let read = if self.answered_early { self.stream.conn.reader().read(input) } else { self.stream.read(input) };
        match read {
            // Many servers close without TLS's own goodbye. HTTP's framing tells whether anything is missing.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || self.answered_early => Ok(0),
            read => read,
        }
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        if self.answered_early {
            // The server doesn't read the rest.
            return Ok(());
        }
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        match self.stream.write_all(output) {
            Ok(()) => {
                let traffic = TRAFFIC.get();
                TRAFFIC.set(Traffic { sent: traffic.sent + amount as u64, ..traffic });
                Ok(())
            }
            Err(error) => self.settle_early(error),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let read = match self.read() {
            // What was written last breaks only here, and the answer may lie behind that.
            Err(error) => {
                self.settle_early(error)?;
                self.read()?
            }
            Ok(read) => read,
        };
        self.buffers.input_appended(read);
        let traffic = TRAFFIC.get();
        TRAFFIC.set(Traffic { received: traffic.received + read as u64, ..traffic });
        Ok(read > 0)
    }

    /// Whether another request may use it, which is asked before one does: not when it is old, or was made with
    /// files that have changed since.
    fn is_open(&mut self) -> bool {
        let is_current = || self.trust.config().is_ok_and(|config| Arc::ptr_eq(&config, &self.made_with));
        let is_usable = !self.answered_early && self.made.elapsed() < self.max_age && is_current();
        is_usable && self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}
