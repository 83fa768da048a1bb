//! Looks up the server's name, and the proxy's, for a new connection alone. ureq asks its resolver before it looks for
//! a kept connection: each request would start a thread, read `/etc/hosts` and ask the DNS server, for nothing.

use std::fmt;

use ureq::Timeout;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, TcpConnector, Transport};

use super::deadline::Deadline;
use super::transport_error::HostNotFound;

/// Looks nothing up: [`ResolvingConnector`] does.
#[derive(Debug)]
pub(super) struct NoLookup;

impl Resolver for NoLookup {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// Makes TCP connections to the addresses that a name has now, by the system's resolver. Lookup and connection have the
/// connection's time, together.
pub(super) struct ResolvingConnector<R> {
    resolver: R,
    tcp: TcpConnector,
}

impl ResolvingConnector<DefaultResolver> {
    pub(super) fn new() -> Self {
        Self { resolver: DefaultResolver::default(), tcp: TcpConnector::default() }
    }
}

impl<R: Resolver> ResolvingConnector<R> {
    fn resolve(&self, details: &ConnectionDetails<'_>) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let timeout = NextTimeout { reason: Timeout::Resolve, ..Deadline::of(details).left()? };
        self.resolver.resolve(details.uri, details.config, timeout).map_err(|error| match error {
            timeout @ ureq::Error::Timeout(_) => timeout,
            error => {
                let host = details.uri.host().unwrap_or_default().to_owned();
                ureq::Error::Other(HostNotFound { host, source: error.into() }.into())
            }
        })
    }
}

impl<In: Transport, R: Resolver> Connector<In> for ResolvingConnector<R> {
    type Out = <TcpConnector as Connector<In>>::Out;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        if chained.is_some() {
            return self.tcp.connect(details, chained);
        }
        let (addrs, timeout) = (self.resolve(details)?, Deadline::of(details).left()?);
        let details = ConnectionDetails { addrs, now: (details.current_time)(), timeout, ..to(details.uri, details) };
        self.tcp.connect(&details, None)
    }
}

impl<R: fmt::Debug> fmt::Debug for ResolvingConnector<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolvingConnector").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

/// The details of the same connection to another place, whose address is not known.
pub(super) fn to<'a>(uri: &'a Uri, details: &ConnectionDetails<'a>) -> ConnectionDetails<'a> {
    ConnectionDetails {
        uri,
        addrs: details.resolver.empty(),
        config: details.config,
        request_level: details.request_level,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: details.current_time.clone(),
        run_connector: details.run_connector.clone(),
        register_shutdown: details.register_shutdown.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Counts the lookups.
    #[derive(Debug)]
    struct Counting(Arc<AtomicUsize>);

    impl Resolver for Counting {
        fn resolve(
            &self,
            uri: &Uri,
            config: &Config,
            timeout: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, ureq::Error> {
            self.0.fetch_add(1, Ordering::SeqCst);
            DefaultResolver::default().resolve(uri, config, timeout)
        }
    }

    #[test]
    fn a_request_on_a_kept_connection_looks_up_no_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let server = thread::spawn(move || {
            for requests in [3, 1] {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                for _ in 0..requests {
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        stream.read_line(&mut line).unwrap();
                    }
                    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
                }
            }
        });
        let lookups = Arc::new(AtomicUsize::new(0));
        let connector = ResolvingConnector { resolver: Counting(Arc::clone(&lookups)), tcp: TcpConnector::default() };
        let agent = ureq::Agent::with_parts(ureq::Agent::config_builder().build(), ().chain(connector), NoLookup);
        for _ in 0..3 {
            agent.get(&url).call().unwrap().body_mut().read_to_string().unwrap();
        }
        assert_eq!(lookups.load(Ordering::SeqCst), 1);
        let another = agent.get(&url).config().max_idle_age(std::time::Duration::ZERO).build();
        another.call().unwrap();
        assert_eq!(lookups.load(Ordering::SeqCst), 2, "a new connection goes to where the name points now");
        server.join().unwrap();
    }
}
