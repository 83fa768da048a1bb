//! Virtual time: what is due when.

use std::time::{Duration, Instant};

/// A moment, in tenths of a second since the beginning.
pub(crate) type Tick = u32;

/// Ticks a second.
pub(crate) const SECOND: Tick = 10;

/// Ticks a minute.
pub(crate) const MINUTE: Tick = 60 * SECOND;

/// Never.
pub(crate) const NEVER: Tick = Tick::MAX;

/// A length of time in ticks, at least one.
pub(crate) fn ticks(length: Duration) -> Tick {
    ((length.as_secs_f64() * f64::from(SECOND)).round() as Tick).max(1)
}

/// `ticks` as a length of time.
pub(crate) fn length(ticks: Tick) -> Duration {
    Duration::from_millis(u64::from(ticks) * 1000 / u64::from(SECOND))
}

/// What can come due for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Config,
    Log,
    Enroll,
    Reboot,
}

impl Kind {
    pub(crate) const COUNT: usize = 5;

    const ALL: [Self; Self::COUNT] = [Self::Read, Self::Config, Self::Log, Self::Enroll, Self::Reboot];
}

/// Something comes due for a host.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) host: usize,
    pub(crate) kind: Kind,
}

/// All that is to come, a slot a tick: to put something in and to take it out costs the same however much there is.
pub(crate) struct Agenda {
    slots: Vec<Vec<u32>>,
    epoch: Instant,
}

/// Bits of an event that are its host.
const HOST_BITS: u32 = 24;

impl Agenda {
    /// Up to `end`; what would come later is forgotten.
    pub(crate) fn new(end: Tick) -> Self {
        Self { slots: vec![Vec::new(); end as usize], epoch: Instant::now() }
    }

    pub(crate) fn add(&mut self, at: Tick, host: usize, kind: Kind) {
        if let Some(slot) = self.slots.get_mut(at as usize) {
            slot.push((kind as u32) << HOST_BITS | host as u32);
        }
    }

    pub(crate) fn take(&mut self, at: Tick) -> Vec<Event> {
        let slot = std::mem::take(&mut self.slots[at as usize]);
        let event = |packed: u32| Event {
            host: (packed & ((1 << HOST_BITS) - 1)) as usize,
            kind: Kind::ALL[(packed >> HOST_BITS) as usize],
        };
        slot.into_iter().map(event).collect()
    }

    /// A tick as the policies are told it.
    pub(crate) fn instant(&self, at: Tick) -> Instant {
        self.epoch + length(at)
    }
}
