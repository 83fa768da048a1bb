//! Where things are unless a flag says otherwise. Those of both systems are known on both: macOS's package is made on
//! Linux, too.

/// The paths of one system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// osqueryd's own flags.
    pub osquery_flagfile: &'static str,
    /// Our flags, beside them.
    pub own_flagfile: &'static str,
    /// The list of extensions that osqueryd starts.
    pub autoload: &'static str,
    /// The extension, as our package installs it.
    pub extension: &'static str,
    /// The bundle of public authorities that osquery's packages bring.
    pub server_certs: &'static str,
    /// What our package documents, and its examples.
    pub documentation: &'static str,
    /// Where the system's log listens.
    pub syslog: &'static str,
    /// Which release of which system it is, as a text.
    pub release: &'static str,
}

impl Places {
    /// Where things are on Linux, as osquery's packages and ours have it.
    pub const LINUX: Self = Self {
        osquery_flagfile: "/etc/osquery/osquery.flags",
        own_flagfile: "/etc/osquery/remote_tls.flags",
        autoload: "/etc/osquery/extensions.load",
        extension: "/usr/lib/osquery-remote-tls/remote_tls.ext",
        server_certs: "/opt/osquery/share/osquery/certs/certs.pem",
        documentation: "/usr/share/doc/osquery-remote-tls/",
        syslog: "/dev/log",
        release: "/etc/os-release",
    };

    /// Where things are on macOS, as osquery's package and ours have it.
    pub const MACOS: Self = Self {
        osquery_flagfile: "/var/osquery/osquery.flags",
        own_flagfile: "/var/osquery/remote_tls.flags",
        autoload: "/var/osquery/extensions.load",
        extension: "/opt/osquery-remote-tls/remote_tls.ext",
        server_certs: "/var/osquery/certs/certs.pem",
        documentation: "/opt/osquery-remote-tls/share/doc/",
        syslog: "/var/run/syslog",
        release: "/System/Library/CoreServices/SystemVersion.plist",
    };

    /// Where things are on the system that this was compiled for.
    pub const HERE: Self = if cfg!(target_os = "macos") { Self::MACOS } else { Self::LINUX };

    /// All of them, in one order.
    #[must_use]
    pub const fn all(&self) -> [&'static str; 8] {
        [
            self.osquery_flagfile,
            self.own_flagfile,
            self.autoload,
            self.extension,
            self.server_certs,
            self.documentation,
            self.syslog,
            self.release,
        ]
    }
}
