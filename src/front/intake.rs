//! What the front answers itself: pings, and the logger's result lines, which are in the journal before osqueryd gets
//! its answer. Every other call goes [elsewhere](Elsewhere).
//!
//! osqueryd ends itself when a logger call fails, so none does. It hands status lines over once: those that no worker
//! can take in time wait in a journal of their own until one decorates and sends them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::relay::Elsewhere;
use crate::extension::hold::Hold;
use crate::extension::registry::{NAME, RegistryName};
use crate::extension::server::{Connection, Converse};
use crate::extension::wire::{self, Conversation, Message, Method, Sink};
use crate::journal::{Incoming, OneLine, Writer};
use crate::line_count::LineCounter;
use crate::shown::{MESSAGE, shown};

/// How long a call waits for a worker when none is there.
const WORKER_WAIT: Duration = Duration::from_secs(10);

/// How long a status call waits for a worker: osqueryd's thread waits, and the lines can wait without a worker.
const STATUS_WAIT: Duration = Duration::from_secs(2);

/// `features` answers a bit mask: 1 is "takes status lines".
const TAKES_STATUS_LINES: i32 = 1;

/// A `string_batch` call is one record: its value between these.
const BATCH_HEAD: &[u8] = b"{\"string_batch\":";
const BATCH_TAIL: &[u8] = b"}";

/// Answers osqueryd's connections: keeps result lines itself, and hands every other call on.
pub struct Intake {
    /// The uuid under which osqueryd has registered the extension, which each answer carries.
    pub uuid: AtomicI64,
    /// Answers wait for it; osqueryd's `shutdown` call begins it.
    pub hold: Arc<Hold>,
    /// Result lines.
    pub results: Arc<Writer<LineCounter>>,
    /// Status calls that no worker could take.
    pub pending: Arc<Writer<OneLine>>,
    /// Who answers the other calls.
    pub elsewhere: Arc<dyn Elsewhere>,
    /// Told when a status call waits in `pending`.
    pub on_pending: Box<dyn Fn() + Send + Sync>,
    /// Told of osqueryd's `shutdown` call.
    pub on_shutdown: Box<dyn Fn() + Send + Sync>,
}

/// A kind of result line, by the name that osqueryd gives its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `string`, `snapshot` or `event`: one record.
    Line,
    /// `string_batch`: an array of lines.
    Batch,
}

impl Kind {
    fn of(registry: &[u8], item: &[u8], name: &[u8]) -> Option<Self> {
        if registry != RegistryName::Logger.as_str().as_bytes() || item != NAME.as_bytes() {
            return None;
        }
        match name {
            b"string" | b"snapshot" | b"event" => Some(Self::Line),
            b"string_batch" => Some(Self::Batch),
            _ => None,
        }
    }
}

impl Converse for Intake {
    fn converse(&self, connection: &Connection<'_>, buffer: &mut Vec<u8>) -> io::Result<()> {
        let mut conversation = Conversation::new(connection, buffer);
        while let Some(message) = self.hear(&mut conversation)? {
            connection.begin_answer();
            let answer = self.answer(&conversation, &message);
            // osqueryd sweeps when it has the answer to its `shutdown`: to hold that one back would only put the sweep off.
            if message.method != Method::Shutdown {
                self.hold.wait();
            }
            connection.answer(&answer)?;
            if connection.is_last() {
                break;
            }
        }
        Ok(())
    }
}

impl Intake {
    /// The next message of a conversation, for [`Self::answer`]; `None` at its end. A line that is too large for memory
    /// is in the journal by then.
    ///
    /// # Errors
    /// Those of [`Conversation::next`].
    pub fn hear<R: io::Read>(&self, conversation: &mut Conversation<'_, R>) -> io::Result<Option<Message>> {
        conversation.next(&|registry, item, name, _| self.sink(registry, item, name))
    }

    /// Answers the message that was heard last.
    pub fn answer<R: io::Read>(&self, conversation: &Conversation<'_, R>, message: &Message) -> Vec<u8> {
        let (sequence, uuid) = (message.sequence, self.uuid.load(Ordering::Relaxed));
        match message.method {
            Method::Ping => wire::pong(sequence, uuid),
            Method::Call if self.keep(conversation, message) => wire::call_reply(sequence, 0, "OK", uuid),
            Method::Call => self.relay(conversation, message),
            Method::Shutdown => {
                self.hold.begin();
                (self.on_shutdown)();
                wire::shutdown_reply(sequence)
            }
            Method::Unknown => wire::unknown_method("?", sequence),
        }
    }

    /// Puts a result line into the journal: whether the call brought one.
    fn keep<R: io::Read>(&self, conversation: &Conversation<'_, R>, message: &Message) -> bool {
        let call = &message.call;
        if call.streamed {
            return true;
        }
        let (registry, item) = (conversation.bytes(&call.registry), conversation.bytes(&call.item));
        let kind_of = |name| Kind::of(registry, item, conversation.bytes(name));
        let Some((kind, value)) = call.entries.iter().find_map(|(name, value)| Some((kind_of(name)?, value))) else {
            return false;
        };
        let value = conversation.bytes(value);
        match kind {
            Kind::Batch if value.starts_with(b"[") => {
                self.results.append_parts(&[BATCH_HEAD, value, BATCH_TAIL]);
            }
            Kind::Line | Kind::Batch => self.results.append(value),
        }
        true
    }

    fn sink(&self, registry: &[u8], item: &[u8], name: &[u8]) -> Option<Box<dyn Sink + '_>> {
        let kind = Kind::of(registry, item, name)?;
        let mut incoming = Incoming::begin(&self.results);
        if kind == Kind::Batch {
            incoming.write(BATCH_HEAD);
        }
        Some(Box::new(LargeLine { incoming, kind }))
    }

    fn relay<R: io::Read>(&self, conversation: &Conversation<'_, R>, message: &Message) -> Vec<u8> {
        let (sequence, uuid) = (message.sequence, self.uuid.load(Ordering::Relaxed));
        let frame = conversation.bytes(&message.frame);
        let value = |name: &[u8]| {
            let mut entries = message.call.entries.iter();
            entries.find(|(key, _)| conversation.bytes(key) == name).map(|(_, value)| conversation.bytes(value))
        };
        let is_ours = conversation.bytes(&message.call.item) == NAME.as_bytes();
        let is_logger = is_ours && conversation.bytes(&message.call.registry) == b"logger";
        let is_status = is_logger && value(b"status").is_some();
        let wait_limit = if is_status { STATUS_WAIT } else { WORKER_WAIT };
        let unanswered = match self.elsewhere.answer(frame, wait_limit) {
            Ok(answer) => return answer,
            Err(unanswered) => unanswered,
        };
        if !is_logger {
            return wire::call_reply(sequence, 1, &shown(&format!("remote_tls: {unanswered}"), MESSAGE), uuid);
        }
        if let Some(log) = value(b"log").filter(|log| !log.is_empty()) {
            self.pending.append(log);
            (self.on_pending)();
        }
        let is_features = value(b"action") == Some(b"features");
        wire::call_reply(sequence, if is_features { TAKES_STATUS_LINES } else { 0 }, "OK", uuid)
    }
}

/// A line that is too large for memory, on its way into the journal.
struct LargeLine<'w> {
    incoming: Incoming<'w, LineCounter>,
    kind: Kind,
}

impl Sink for LargeLine<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.incoming.write(bytes);
    }

    fn commit(mut self: Box<Self>) {
        if self.kind == Kind::Batch {
            self.incoming.write(BATCH_TAIL);
        }
        self.incoming.commit();
    }
}
