//! Calls to an extension, with osqueryd's habits: every call is two connections, one for a ping and one for the call.
//!
//! The call itself is written by hand, not by the generated client: a request's values are bytes, and need not be
//! UTF-8.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use thrift::protocol::{
    TBinaryInputProtocol, TBinaryOutputProtocol, TFieldIdentifier, TInputProtocol, TListIdentifier, TMapIdentifier,
    TMessageIdentifier, TMessageType, TOutputProtocol, TStructIdentifier, TType,
};
use thrift::transport::{ReadHalf, TBufferedReadTransport, TBufferedWriteTransport, TIoChannel, WriteHalf};

use super::thrift_api::{ExtensionSyncClient, TExtensionSyncClient};
use super::{CallOutcome, Row, lock};

/// How long the ping before a call may take.
const PING: Duration = Duration::from_secs(10);

pub(super) type Input = TBinaryInputProtocol<TBufferedReadTransport<ReadHalf<UnixStream>>>;
pub(super) type Output = TBinaryOutputProtocol<TBufferedWriteTransport<WriteHalf<UnixStream>>>;

/// The connections of one worker in one direction, so that all of them can be cut at once.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    streams: HashMap<u64, UnixStream>,
    next: u64,
    cut: bool,
}

/// Membership of a connection; ends with its drop.
pub(super) struct Kept<'a> {
    connections: &'a Connections,
    id: u64,
}

impl Connections {
    /// Takes a connection in; fails once they are cut.
    pub(super) fn keep(&self, stream: &UnixStream) -> io::Result<Kept<'_>> {
        let mut open = lock(&self.open);
        if open.cut {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "osqueryd's worker is gone"));
        }
        let id = open.next;
        open.next += 1;
        open.streams.insert(id, stream.try_clone()?);
        Ok(Kept { connections: self, id })
    }

    /// Whether they are not cut.
    pub(super) fn are_open(&self) -> bool {
        !lock(&self.open).cut
    }

    /// Ends every connection, and refuses new ones.
    pub(super) fn cut(&self) {
        let mut open = lock(&self.open);
        open.cut = true;
        for stream in open.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        open.streams.clear();
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        lock(&self.connections.open).streams.remove(&self.id);
    }
}

/// Thrift's two sides over a connection.
pub(super) fn protocols(stream: UnixStream) -> thrift::Result<(Input, Output)> {
    let (reading, writing) = stream.split()?;
    Ok((
        TBinaryInputProtocol::new(TBufferedReadTransport::new(reading), true),
        TBinaryOutputProtocol::new(TBufferedWriteTransport::new(writing), true),
    ))
}

/// Pings on one connection, calls on a second one. The error is the text of what went wrong below the status.
pub(super) fn call(
    connections: &Connections,
    socket: &Path,
    registry: &str,
    item: &str,
    request: &[(&str, &[u8])],
    timeout: Duration,
) -> Result<CallOutcome, String> {
    if let Err(error) = ping(connections, socket, PING) {
        return Err(format!("Extension socket not available: {} ({error})", socket.display()));
    }
    let called = connect(connections, socket, timeout, |stream| {
        let (mut input, mut output) = protocols(stream)?;
        write_call(&mut output, registry, item, request)?;
        read_answer(&mut input)
    });
    called.map_err(|error| format!("Extension call failed: {error}"))
}

/// One ping on a connection of its own.
pub(super) fn ping(connections: &Connections, socket: &Path, timeout: Duration) -> thrift::Result<i32> {
    connect(connections, socket, timeout, |stream| {
        let (input, output) = protocols(stream)?;
        Ok(ExtensionSyncClient::new(input, output).ping()?.code.unwrap_or(0))
    })
}

/// The call that ends an extension.
pub(super) fn shutdown(connections: &Connections, socket: &Path, timeout: Duration) -> thrift::Result<()> {
    connect(connections, socket, timeout, |stream| {
        let (input, output) = protocols(stream)?;
        ExtensionSyncClient::new(input, output).shutdown()
    })
}

fn connect<T>(
    connections: &Connections,
    socket: &Path,
    timeout: Duration,
    talk: impl FnOnce(UnixStream) -> thrift::Result<T>,
) -> thrift::Result<T> {
    // Told apart from a connection that breaks later.
    let stream = UnixStream::connect(socket).map_err(|error| format!("cannot connect: {error}"))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let _kept = connections.keep(&stream)?;
    talk(stream)
}

fn write_call(output: &mut Output, registry: &str, item: &str, request: &[(&str, &[u8])]) -> thrift::Result<()> {
    output.write_message_begin(&TMessageIdentifier::new("call", TMessageType::Call, 0))?;
    output.write_struct_begin(&TStructIdentifier::new("call_args"))?;
    for (id, name, text) in [(1, "registry", registry), (2, "item", item)] {
        output.write_field_begin(&TFieldIdentifier::new(name, TType::String, id))?;
        output.write_string(text)?;
        output.write_field_end()?;
    }
    output.write_field_begin(&TFieldIdentifier::new("request", TType::Map, 3))?;
    output.write_map_begin(&TMapIdentifier::new(TType::String, TType::String, request.len() as i32))?;
    for (name, value) in request {
        output.write_string(name)?;
        output.write_bytes(value)?;
    }
    output.write_map_end()?;
    output.write_field_end()?;
    output.write_field_stop()?;
    output.write_struct_end()?;
    output.write_message_end()?;
    output.flush()
}

fn read_answer(input: &mut Input) -> thrift::Result<CallOutcome> {
    let message = input.read_message_begin()?;
    if message.message_type == TMessageType::Exception {
        let error = thrift::Error::read_application_error_from_in_protocol(input)?;
        return Err(thrift::Error::Application(error));
    }
    let mut outcome = CallOutcome::default();
    fields(input, |input, id| match id {
        0 => fields(input, |input, id| match id {
            1 => read_status(input, &mut outcome).map(|()| true),
            2 => read_rows(input, &mut outcome.rows).map(|()| true),
            _ => Ok(false),
        })
        .map(|()| true),
        _ => Ok(false),
    })?;
    input.read_message_end()?;
    Ok(outcome)
}

fn read_status(input: &mut Input, outcome: &mut CallOutcome) -> thrift::Result<()> {
    fields(input, |input, id| {
        match id {
            1 => outcome.code = input.read_i32()?,
            2 => outcome.message = read_text(input)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn read_rows(input: &mut Input, rows: &mut Vec<Row>) -> thrift::Result<()> {
    let TListIdentifier { size, .. } = input.read_list_begin()?;
    for _ in 0..size {
        let mut row = Row::new();
        for _ in 0..input.read_map_begin()?.size {
            let name = read_text(input)?;
            row.insert(name, read_text(input)?);
        }
        input.read_map_end()?;
        rows.push(row);
    }
    input.read_list_end()
}

/// Reads a struct; `read` says whether it knew the field, and an unknown one is skipped.
fn fields(input: &mut Input, mut read: impl FnMut(&mut Input, i16) -> thrift::Result<bool>) -> thrift::Result<()> {
    input.read_struct_begin()?;
    loop {
        let field = input.read_field_begin()?;
        if field.field_type == TType::Stop {
            return input.read_struct_end();
        }
        if !read(input, field.id.unwrap_or(-1))? {
            input.skip(field.field_type)?;
        }
        input.read_field_end()?;
    }
}

fn read_text(input: &mut Input) -> thrift::Result<String> {
    Ok(String::from_utf8_lossy(&input.read_bytes()?).into_owned())
}
