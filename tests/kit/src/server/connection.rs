//! Connections: accepting them, the TLS handshake, and each request's way through the server.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::Shared;
use super::answer::{Answer, Content};
use super::body::AnswerBody;
use super::recorded::{Endpoint, Recorded};
use super::respond::response;
use super::state::is_gzip;

/// Takes connections until told to stop, then drops the listener and every connection before it returns.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stop: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stop => break,
            // Finished connections are let go, or they would pile up for the life of the server.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(greet(stream, Arc::clone(&shared)));
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn greet(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = shared.acceptor.clone() else { return serve(stream, shared).await };
    match acceptor.accept(stream).await {
        Ok(stream) => serve(stream, shared).await,
        Err(_) if shared.rules.drain.is_some() => {}
        Err(error) => shared.change(|state| state.handshake_errors.push(error.to_string())),
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let connection = shared.change(|state| {
        state.connections += 1;
        state.connections
    });
    let close = Arc::new(Notify::new());
    let service = service_fn(|request| answer(Arc::clone(&shared), connection, Arc::clone(&close), request));
    // An error from the service makes hyper drop the stream without a word: that is how answers go missing.
    let mut conversation = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            _ = conversation.as_mut() => return,
            // The head has gone out by now, so that this can't add a `Connection: close` to it any more.
            () = close.notified() => conversation.as_mut().graceful_shutdown(),
        }
    }
}

async fn answer(
    shared: Arc<Shared>,
    connection: usize,
    close: Arc<Notify>,
    request: Request<Incoming>,
) -> io::Result<Response<AnswerBody>> {
    let (mut recorded, body) = arrived(connection, request);
    let planned = shared.change(|state| state.planned(recorded.endpoint)).unwrap_or_else(Answer::default_behaviour);
    if matches!(planned.content, Content::DropMidRequest) {
        recorded.answer_body = "(connection dropped before the body)".to_owned();
        shared.record(shared.state(), recorded);
        return Err(io::Error::other("dropped before the body"));
    }
    if let Content::FromHead { status } = planned.content
        && shared.is_over_limit(&recorded)
    {
        recorded.answer_status = status;
        shared.record(shared.state(), recorded);
        return Ok(response(planned, (status, String::new()), false, close));
    }
    if let Err(error) = read_body(&mut recorded, body).await {
        recorded.answer_body = format!("(the body did not arrive: {error})");
        shared.record(shared.state(), recorded);
        return Err(error);
    }
    let refused = matches!(planned.content, Content::Default).then(|| shared.state().refusal(&recorded)).flatten();
    let planned = refused.unwrap_or(planned);
    let reply = shared.decide(&planned, recorded);
    // It is on record from here on, whatever becomes of its sending.
    tokio::time::sleep(planned.delay).await;
    match planned.content {
        Content::DropConnection | Content::Lost => Err(io::Error::other("dropped without an answer")),
        Content::Hang => std::future::pending().await,
        _ => Ok(response(planned, reply, shared.keep_alive, close)),
    }
}

/// The request's head as a record, and its body still to come.
fn arrived(connection: usize, request: Request<Incoming>) -> (Recorded, Incoming) {
    let (head, body) = request.into_parts();
    let target = head.uri.to_string();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let recorded = Recorded {
        endpoint: Endpoint::of(&target),
        method: head.method.to_string(),
        target,
        version: format!("{:?}", head.version),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: Vec::new(),
        wire_bytes: 0,
        json: None,
        connection,
        answer_status: 0,
        answer_body: String::new(),
        at: Instant::now(),
    };
    (recorded, body)
}

/// Reads the body into the record; what came before an error is kept.
async fn read_body(recorded: &mut Recorded, mut body: Incoming) -> io::Result<()> {
    let mut end = Ok(());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => recorded.body.extend(frame.into_data().unwrap_or_default()),
            Err(error) => {
                end = Err(io::Error::other(error));
                break;
            }
        }
    }
    recorded.wire_bytes = recorded.body.len();
    if is_gzip(recorded) {
        let mut plain = Vec::new();
        // A body that doesn't decode stays as it came, and is no JSON.
        if MultiGzDecoder::new(&recorded.body[..]).read_to_end(&mut plain).is_ok() {
            recorded.body = plain;
        }
    }
    recorded.json = serde_json::from_slice(&recorded.body).ok();
    end
}
