//! The load: calls with osqueryd's habit. Each is a connection with a ping and a second one with the call, and the
//! caller waits for both, as osqueryd's scheduler does for every line.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::cores::Cores;
use crate::statistics::Latencies;
use crate::thrift;

/// How long to go on: until either is reached.
#[derive(Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) time: Duration,
    pub(crate) calls: usize,
}

/// How it went.
pub(crate) struct Load {
    /// From a call's first connection to the end of its second one.
    pub(crate) latencies: Latencies,
    pub(crate) elapsed: Duration,
}

impl Load {
    pub(crate) fn calls_per_second(&self) -> f64 {
        self.latencies.count() as f64 / self.elapsed.as_secs_f64()
    }

    /// A share of `cpu` for each call, in microseconds.
    pub(crate) fn per_call(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.latencies.count() as f64
    }
}

/// Makes the same call from several threads at once, on these cores.
///
/// # Panics
/// When a call fails: what is measured then is not what is meant.
pub(crate) fn drive(socket: &Path, call: &[u8], threads: usize, cores: Cores, amount: Amount) -> Load {
    let calls = (amount.calls / threads).max(1);
    let ready = Barrier::new(threads);
    let work = || {
        cores.put(None);
        let mut caller = Caller::new(socket);
        let mut latencies = Vec::with_capacity(calls.min(1 << 20));
        ready.wait();
        let began = Instant::now();
        // One at least, however long this thread did not get its turn.
        while latencies.is_empty() || latencies.len() < calls && began.elapsed() < amount.time {
            latencies.push(caller.call(call));
        }
        (latencies, began, Instant::now())
    };
    let works: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("the calls succeed")).collect()
    });
    let began = works.iter().map(|(_, began, _)| *began).min().expect("a thread");
    let ended = works.iter().map(|(_, _, ended)| *ended).max().expect("a thread");
    let latencies = works.into_iter().flat_map(|(latencies, _, _)| latencies).collect();
    Load { elapsed: ended - began, latencies: Latencies::new(latencies) }
}

/// One caller, with the buffer that it reads answers into.
pub(crate) struct Caller<'a> {
    socket: &'a Path,
    ping: Vec<u8>,
    answer: Vec<u8>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(socket: &'a Path) -> Self {
        Self { socket, ping: thrift::ping(), answer: Vec::new() }
    }

    /// One call, ping included: how long it took.
    ///
    /// # Panics
    /// When it fails.
    pub(crate) fn call(&mut self, message: &[u8]) -> Duration {
        let began = Instant::now();
        let ping = std::mem::take(&mut self.ping);
        let answered = self.exchange(&ping).and_then(|()| self.exchange(message));
        self.ping = ping;
        let took = began.elapsed();
        answered.unwrap_or_else(|error| panic!("a call to {} failed: {error}", self.socket.display()));
        took
    }

    /// Whether a ping is answered.
    pub(crate) fn pings(&mut self) -> bool {
        let ping = self.ping.clone();
        self.exchange(&ping).is_ok()
    }

    fn exchange(&mut self, message: &[u8]) -> io::Result<()> {
        let mut stream = UnixStream::connect(self.socket)?;
        stream.write_all(message)?;
        let length = thrift::read(&mut stream, &mut self.answer)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match thrift::code(&self.answer[..length]) {
            Some(0) => Ok(()),
            other => Err(io::Error::other(format!("it was answered with the code {other:?}"))),
        }
    }
}
