//! What operators have done to lines that are kept: only who reads a journal, or sets lines aside, may throw any away while
//! everything runs. The commands `buffer` and `rejected` ask for it.

use std::sync::Arc;

use crate::chain::chain;
use crate::extension::registry::{Reply, StringMap};
use crate::journal::{Reader, Rejected, Which, Writer};
use crate::line_count::LineCounter;
use crate::shown::quoted;
use crate::words::counted;

/// Throw away what waits in a journal, forget lines that were set aside, take one of them again.
pub(super) const ACTIONS: [&str; 3] = [DISCARD, FORGET, RETAKE];
const DISCARD: &str = "discard";
const FORGET: &str = "forget";
const RETAKE: &str = "retake";

/// Why lines are forgotten: the logger has been given them again.
pub const RETRIED: &str = "retried";

/// The journals and the lines that were set aside, as this worker has them.
pub struct Keeping {
    /// Those that it reads. The results have two.
    pub journals: Vec<Arc<Reader<LineCounter>>>,
    /// Those that it writes, by their names: the front takes result lines.
    pub writers: Vec<(&'static str, Arc<Writer<LineCounter>>)>,
    /// The lines that were set aside.
    pub rejected: Arc<Rejected>,
}

impl Keeping {
    /// Answers `discard`, `forget` or `retake`.
    #[must_use]
    pub fn call(&self, request: &StringMap) -> Reply {
        let text = |name: &str| request.get(name).map_or("", String::as_str);
        match text("action") {
            DISCARD => self.discard(text("stream")),
            FORGET => self.forget(text("ids"), text("since")),
            _ => self.retake(text("stream"), text("line")),
        }
    }

    fn discard(&self, stream: &str) -> Reply {
        let mut journals = self.journals.iter().filter(|journal| journal.name() == stream).peekable();
        if journals.peek().is_none() {
            return Reply::failed(format!("there is no journal {} that is read here", quoted(stream)));
        }
        match journals.map(|journal| journal.drop_all()).sum::<Result<u64, _>>() {
            Ok(lines) => {
                log::info!("discarded {} of the {stream} journal, as an operator asked", counted(lines, "line"));
                Reply::row("lines", lines.to_string())
            }
            Err(error) => Reply::failed(chain(&error).to_string()),
        }
    }

    /// Forgets lines that were set aside. `because` is [`RETRIED`] where the logger has been given them again: then the log says
    /// that, and not that they are gone.
    fn forget(&self, ids: &str, because: &str) -> Reply {
        let which = match ids {
            "all" => Which::All,
            ids => Which::These(ids.split(',').map(str::to_owned).collect()),
        };
        match self.rejected.forget(&which) {
            Ok(lines) => {
                let count = counted(lines, "line");
                match because {
                    RETRIED => {
                        log::info!("given to the logger again, as an operator asked: {count} that had been set aside")
                    }
                    _ => log::info!("forgot {count} that had been set aside, as an operator asked"),
                }
                Reply::row("lines", lines.to_string())
            }
            Err(error) => Reply::failed(format!("the lines that were set aside can't be forgotten: {error}")),
        }
    }

    fn retake(&self, stream: &str, line: &str) -> Reply {
        match self.writers.iter().find(|(name, _)| *name == stream) {
            Some((_, writer)) => {
                writer.append(line.as_bytes());
                Reply::ok()
            }
            None => Reply::failed(format!("the journal {} takes no lines again", quoted(stream))),
        }
    }
}
