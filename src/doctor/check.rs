//! The checks, in their order.

/// The checks, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// osqueryd's flag file can be read, and nothing in it is lost.
    FlagFile,
    /// osquery knows the names in it.
    FlagNames,
    /// The values can be used.
    FlagValues,
    /// The values go together.
    FlagCombinations,
    /// Our own flag file.
    OwnFlags,
    /// The list of extensions names ours.
    AutoloadFile,
    /// osqueryd's rules for the extension's file and directory.
    ExtensionFile,
    /// osqueryd answers on its socket.
    Socket,
    /// osqueryd runs with these flags and with our extension.
    RunningOsqueryd,
    /// The plugins that the flags name are the ones that osqueryd uses.
    ActivePlugins,
    /// How long osqueryd waits for its extensions.
    ExtensionsTimeout,
    /// The extension answers, and its worker stays.
    Worker,
    /// The enroll secret can be read, and is one.
    EnrollSecret,
    /// The file of `tls_server_certs` holds authorities that are valid.
    ServerTrust,
    /// The client certificate and its key.
    ClientCertificate,
    /// More headers of requests.
    RequestHeaders,
    /// The server's name has addresses, or the proxy's.
    NameResolution,
    /// The proxy makes a connection.
    Proxy,
    /// The server's port is open.
    TcpConnection,
    /// Both sides agree, and the server's certificate is trusted.
    TlsHandshake,
    /// The servers of `failover_hostnames` can be reached.
    OtherServers,
    /// The server answers a request.
    ServerAnswer,
    /// This host's clock and the server's.
    Clock,
    /// The enrollment, and what answers at `enroll_tls_endpoint`.
    EnrollEndpoint,
    /// What answers at `config_tls_endpoint`.
    ConfigEndpoint,
    /// What answers at `logger_tls_endpoint`.
    LoggerEndpoint,
    /// What answers at `distributed_tls_read_endpoint`.
    DistributedReadEndpoint,
    /// What answers at `distributed_tls_write_endpoint`.
    DistributedWriteEndpoint,
    /// What becomes of the lines.
    Delivery,
    /// The lines and results that wait on disk.
    Buffers,
}

impl Check {
    /// Every check, in the order in which they are made and shown.
    pub const ALL: [Self; 30] = [
        Self::FlagFile,
        Self::FlagNames,
        Self::FlagValues,
        Self::FlagCombinations,
        Self::OwnFlags,
        Self::AutoloadFile,
        Self::ExtensionFile,
        Self::Socket,
        Self::RunningOsqueryd,
        Self::ActivePlugins,
        Self::ExtensionsTimeout,
        Self::Worker,
        Self::EnrollSecret,
        Self::ServerTrust,
        Self::ClientCertificate,
        Self::RequestHeaders,
        Self::NameResolution,
        Self::Proxy,
        Self::TcpConnection,
        Self::TlsHandshake,
        Self::OtherServers,
        Self::ServerAnswer,
        Self::Clock,
        Self::EnrollEndpoint,
        Self::ConfigEndpoint,
        Self::LoggerEndpoint,
        Self::DistributedReadEndpoint,
        Self::DistributedWriteEndpoint,
        Self::Delivery,
        Self::Buffers,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.described().0
    }

    /// What it looks at, in a line: for the man page.
    #[must_use]
    pub fn about(self) -> &'static str {
        self.described().1
    }

    fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::FlagFile => ("flag file", "osqueryd's flag file can be read, and nothing in it is lost"),
            Self::FlagNames => ("flag names", "osquery knows the names in it"),
            Self::FlagValues => ("flag values", "the values can be used"),
            Self::FlagCombinations => ("flag combinations", "the values go together"),
            Self::OwnFlags => ("own flags", "the extension's own flag file can be used"),
            Self::AutoloadFile => ("autoload file", "the list of extensions names this one"),
            Self::ExtensionFile => ("extension file", "osqueryd's rules for the extension's file are kept"),
            Self::Socket => ("socket", "osqueryd answers"),
            Self::RunningOsqueryd => ("running osqueryd", "it runs with these flags and with the extension"),
            Self::ActivePlugins => ("active plugins", "the plugins that the flags name are the ones in use"),
            Self::ExtensionsTimeout => ("extensions timeout", "osqueryd waits long enough for its extensions"),
            Self::Worker => ("worker", "the extension answers, and its worker stays"),
            Self::EnrollSecret => ("enroll secret", "the secret can be read and looks like one"),
            Self::ServerTrust => ("server trust", "tls_server_certs holds certificates that are valid today"),
            Self::ClientCertificate => ("client certificate", "certificate and key belong together"),
            Self::RequestHeaders => ("request headers", "the headers that every request is to have can be used"),
            Self::NameResolution => ("name resolution", "the server's name has an address, or the proxy's"),
            Self::Proxy => ("proxy", "the proxy makes a connection"),
            Self::TcpConnection => ("tcp connection", "the server's port is open"),
            Self::TlsHandshake => ("tls handshake", "both sides agree, and the server's certificate is trusted"),
            Self::OtherServers => ("other servers", "those of failover_hostnames can be reached and are trusted"),
            Self::ServerAnswer => ("server answer", "the server answers a request, and soon"),
            Self::Clock => ("clock", "this host's clock and the server's agree"),
            Self::EnrollEndpoint => ("enroll endpoint", "the host is enrolled"),
            Self::ConfigEndpoint => ("config endpoint", "the server gives this host its configuration"),
            Self::LoggerEndpoint => ("logger endpoint", "the server takes lines"),
            Self::DistributedReadEndpoint => ("distributed read endpoint", "the server gives queries"),
            Self::DistributedWriteEndpoint => ("distributed write endpoint", "the server takes their results"),
            Self::Delivery => {
                ("delivery", "no line waits long or is dropped, and the server takes them as they are sent")
            }
            Self::Buffers => ("buffers", "the journals on disk can be used"),
        }
    }
}

/// What is asked about the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Whether all is well now.
    Now,
    /// Whether it is ready for osqueryd's next start; what runs until then doesn't matter.
    BeforeRestart,
}
