//! What the front waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::worker_process::WorkerEvent;
use crate::extension::hold::Hold;

/// Something that has happened, which the front acts on.
pub(super) enum Event {
    /// The manager connection broke, or osqueryd has called `shutdown`: it may be ending.
    HungUp,
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP: a new worker, please.
    Renew,
    /// A worker, by its number, has something to say.
    Worker(u64, WorkerEvent),
}

/// Events, some of which are put off while only the end is waited for.
pub(super) struct Events {
    receiver: Receiver<Event>,
    put_off: VecDeque<Event>,
}

impl Events {
    pub(super) fn new(receiver: Receiver<Event>) -> Self {
        Self { receiver, put_off: VecDeque::new() }
    }

    /// The next event, at most until `deadline`.
    pub(super) fn next(&mut self, deadline: Instant) -> Result<Event, RecvTimeoutError> {
        match self.put_off.pop_front() {
            Some(event) => Ok(event),
            None => self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        }
    }

    /// Waits for `pause`: whether the end was asked for meanwhile, which stays an event.
    pub(super) fn has_end_within(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            match self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::HungUp) => {}
                Ok(event) => {
                    let is_end = matches!(event, Event::End);
                    self.put_off.push_back(event);
                    if is_end {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

/// Makes events of signals, in a thread that ends with the handle.
pub(super) fn watch_signals(events: Sender<Event>, hold: Arc<Hold>) -> anyhow::Result<Handle> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("can't watch for signals")?;
    let handle = signals.handle();
    let watch = move || {
        for signal in &mut signals {
            let event = if signal == SIGHUP {
                Event::Renew
            } else {
                hold.begin();
                Event::End
            };
            let _ = events.send(event);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).context("can't start a thread")?;
    Ok(handle)
}
