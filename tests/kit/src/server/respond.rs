//! Turning an answer into the response that goes out.

use std::sync::Arc;

use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode, Version};
use tokio::sync::Notify;

use super::answer::{Answer, Content, Ending, compressed};
use super::body::AnswerBody;
use super::state::Reply;

/// The response for an answer whose status and text have been decided. `close` is told once all is written, when
/// the connection is to close without a word.
pub(super) fn response(answer: Answer, reply: Reply, keep_alive: bool, close: Arc<Notify>) -> Response<AnswerBody> {
    let (status, text) = reply;
    let http10 = answer.ending == Ending::Http10;
    let content_type = if let Content::Fixed { content_type, .. } = answer.content { content_type } else { JSON };
    let encode = |text: String| match answer.latin1 {
        true => text.chars().map(|character| u8::try_from(character).expect("a character up to U+00FF")).collect(),
        false => text.into_bytes(),
    };
    let pack = |text| if answer.gzip { compressed(&encode(text)) } else { encode(text) };
    let mut declared = None;
    let body = match answer.content {
        Content::Trickle { body, byte_every } => AnswerBody::slow(pack(body), byte_every),
        Content::Truncated { body, declared: length } => {
            declared = Some(length);
            AnswerBody::cut(pack(body))
        }
        Content::Endless { total } => AnswerBody::padding(total, answer.gzip),
        // A compressed nothing would be a body, and some statuses must not have one.
        _ if text.is_empty() => AnswerBody::whole(Vec::new()),
        _ if http10 => AnswerBody::unmeasured(pack(text)),
        _ => AnswerBody::whole(pack(text)),
    };
    let body = if answer.ending == Ending::Silent { body.tell(close) } else { body };

    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status between 100 and 999");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if answer.gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(length) = declared {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    let closes = !keep_alive && answer.ending == Ending::AsConfigured;
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in &answer.headers {
        let name = HeaderName::try_from(name.as_str()).expect("a header's name");
        headers.insert(name, HeaderValue::from_str(value).expect("a header's value"));
    }
    if closes || http10 {
        *response.version_mut() = Version::HTTP_10;
    }
    response
}

const JSON: &str = "application/json";
