//! A scripted HTTP proxy: tunnels by CONNECT, or refuses, in the ways of proxies in the field.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::lock;

/// What the proxy does with each CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Makes the connection.
    Tunnel,
    /// Makes the connection, and carries this many bytes to the server and no more.
    StallAfter(u64),
    /// Answers with this status and an error page.
    Refuse(u16),
    /// Never answers.
    Hang,
    /// Answers one byte in each of these intervals, and never comes to an end.
    Trickle(Duration),
    /// Hangs up.
    Close,
    /// Answers what is no HTTP.
    Garbage,
}

/// A CONNECT as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// `host:port`.
    pub target: String,
    /// The `Proxy-Authorization` header.
    pub authorization: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The names of all its headers, in small letters.
    pub names: Vec<String>,
}

/// A running proxy on 127.0.0.1. Dropping it ends it and its tunnels.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    behaviour: Behaviour,
    stopping: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connects: Vec<Connect>,
    open: Vec<TcpStream>,
}

impl Proxy {
    /// Starts a proxy.
    pub fn start(behaviour: Behaviour) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { behaviour, stopping: AtomicBool::new(false), state: Mutex::default() });
        let acceptor = thread::Builder::new().name("proxy".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        })?;
        Ok(Proxy { port, shared, acceptor: Some(acceptor) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it was asked so far.
    pub fn connects(&self) -> Vec<Connect> {
        self.shared.state().connects.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for stream in &self.shared.state().open {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut clients = Vec::new();
        for client in listener.incoming().flatten() {
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            let shared = Arc::clone(self);
            clients.push(thread::spawn(move || {
                let _ = shared.serve(&client);
                let _ = client.shutdown(Shutdown::Both);
            }));
        }
        for client in clients {
            let _ = client.join();
        }
    }

    fn serve(&self, mut client: &TcpStream) -> io::Result<()> {
        self.state().open.push(client.try_clone()?);
        let mut reader = BufReader::new(client.try_clone()?);
        let connect = read_head(&mut reader)?;
        let target = connect.target.clone();
        self.state().connects.push(connect);
        match self.behaviour {
            Behaviour::Tunnel | Behaviour::StallAfter(_) => {
                let server = TcpStream::connect(&target)?;
                self.state().open.push(server.try_clone()?);
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
                let most = if let Behaviour::StallAfter(most) = self.behaviour { most } else { u64::MAX };
                tunnel(client.try_clone()?, server, most)
            }
            Behaviour::Refuse(status) => {
                let page = format!("<html><h1>{status}</h1></html>");
                let head = format!("HTTP/1.1 {status} Refused\r\nContent-Length: {}\r\n\r\n", page.len());
                client.write_all(format!("{head}{page}").as_bytes())
            }
            // Until one side goes.
            Behaviour::Hang => client.read(&mut [0; 1]).map(drop),
            Behaviour::Trickle(every) => {
                let head = b"HTTP/1.1 200 Connection established\r\nX-Filler: ";
                head.iter().chain(std::iter::repeat(&b'.')).try_for_each(|&byte| {
                    thread::sleep(every);
                    client.write_all(&[byte])
                })
            }
            Behaviour::Close => Ok(()),
            Behaviour::Garbage => client.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Reads a request's head up to the blank line.
fn read_head(reader: &mut impl BufRead) -> io::Result<Connect> {
    let mut connect = Connect { target: String::new(), authorization: None, user_agent: None, names: Vec::new() };
    for line in reader.lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("CONNECT ") {
            connect.target = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        if let Some((name, value)) = line.split_once(':') {
            let name = name.to_ascii_lowercase();
            connect.names.push(name.clone());
            let header = match name.as_str() {
                "proxy-authorization" => &mut connect.authorization,
                "user-agent" => &mut connect.user_agent,
                _ => continue,
            };
            *header = Some(value.trim().to_owned());
        }
    }
    Ok(connect)
}

fn tunnel(client: TcpStream, server: TcpStream, most_upward: u64) -> io::Result<()> {
    let (from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upward = thread::spawn(move || {
        let carried = io::copy(&mut from_client.take(most_upward), &mut to_server);
        // A stall leaves both sides waiting.
        if carried.is_ok_and(|carried| carried < most_upward) {
            let _ = to_server.shutdown(Shutdown::Write);
        }
    });
    let (mut from_server, mut to_client) = (server, client);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Write);
    let _ = upward.join();
    Ok(())
}
