//! How the front stands with osqueryd, and what follows from what is seen of it. Pure.
//!
//! osqueryd's end begins long before it is over: a worker of osqueryd's that is stopped hangs up on its extensions
//! first, sweeps their sockets' names away, and then finishes the query that it is logging, thousands of calls
//! perhaps. So what ends this extension is the end of osqueryd's *process*, and neither a signal nor a hang-up.

use std::time::{Duration, Instant};

/// After a signal to end, osqueryd is watched this long for signs of its own end. A service manager and osqueryd's
/// watcher signal all processes at once; without a sign, the signal was for the extension alone. A busy osqueryd takes its
/// time between the signal and the first sign, and to wait too long costs nothing: the whole end may take 3 s.
pub const ALONE_AFTER: Duration = Duration::from_millis(700);

/// How the front is attached to osqueryd; [`AttachmentState::next`] decides what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachmentState {
    /// Registered.
    Attached,
    /// Registered, and asked to end since then, without a sign of osqueryd's end.
    Asked(Instant),
    /// osqueryd's manager is gone and its process is there: it is ending, and its lines are taken.
    Ending,
    /// Since then osqueryd's process is gone; another one may come.
    Away(Instant),
    /// The extension is to end.
    Over(Why),
}

/// Why the extension is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// osqueryd's process is gone, and the end was asked for or osqueryd's watcher is gone, too.
    WithOsqueryd,
    /// The extension alone is to end.
    Alone,
    /// osqueryd did not come back in time.
    NoReturn,
}

/// What is seen of osqueryd and of our process at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// The moment.
    pub now: Instant,
    /// SIGTERM or SIGINT has asked for the end. osqueryd's `shutdown` call doesn't: it counts as a hang-up.
    pub asked_to_end: bool,
    /// osqueryd's manager has hung up and can't be connected to.
    pub manager_is_gone: bool,
    /// The process that the manager was in lives.
    pub osqueryd_lives: bool,
    /// The process that has started this one lives: osqueryd's watcher, which starts the next worker.
    pub parent_lives: bool,
    /// How long osqueryd may stay away.
    pub return_limit: Duration,
}

impl AttachmentState {
    /// How it stands after what is seen. That another osqueryd was registered with, which leads from [`Self::Away`]
    /// back to [`Self::Attached`], is the caller's to say.
    #[must_use]
    pub fn next(self, seen: &Observation) -> Self {
        match self {
            Self::Attached | Self::Asked(_) if seen.manager_is_gone => {
                if seen.osqueryd_lives {
                    Self::Ending
                } else {
                    Self::gone(seen)
                }
            }
            Self::Attached if seen.asked_to_end => Self::Asked(seen.now),
            Self::Asked(since) if seen.now.duration_since(since) >= ALONE_AFTER => Self::Over(Why::Alone),
            Self::Ending if !seen.osqueryd_lives => Self::gone(seen),
            Self::Away(_) if seen.asked_to_end || !seen.parent_lives => Self::Over(Why::WithOsqueryd),
            Self::Away(since) if seen.now.duration_since(since) >= seen.return_limit => Self::Over(Why::NoReturn),
            unchanged => unchanged,
        }
    }

    fn gone(seen: &Observation) -> Self {
        if seen.asked_to_end || !seen.parent_lives { Self::Over(Why::WithOsqueryd) } else { Self::Away(seen.now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Observation {
        Observation {
            now: Instant::now(),
            asked_to_end: false,
            manager_is_gone: false,
            osqueryd_lives: true,
            parent_lives: true,
            return_limit: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_clean_stop_is_followed_to_the_end_of_osqueryd_s_process() {
        let asked = Observation { asked_to_end: true, ..seen() };
        let state = AttachmentState::Attached.next(&asked);
        assert_eq!(state, AttachmentState::Asked(asked.now));
        let ending = Observation { manager_is_gone: true, ..asked };
        let state = state.next(&ending);
        assert_eq!(state, AttachmentState::Ending);
        let later = Observation { now: ending.now + Duration::from_secs(10), ..ending };
        assert_eq!(state.next(&later), AttachmentState::Ending, "however long its last query takes");
        let gone = Observation { osqueryd_lives: false, ..later };
        assert_eq!(state.next(&gone), AttachmentState::Over(Why::WithOsqueryd));
    }

    #[test]
    fn a_signal_without_a_sign_of_osqueryd_s_end_is_for_the_extension_alone() {
        let asked = Observation { asked_to_end: true, ..seen() };
        let state = AttachmentState::Attached.next(&asked);
        let soon = Observation { now: asked.now + ALONE_AFTER / 2, ..asked };
        assert_eq!(state.next(&soon), state);
        let later = Observation { now: asked.now + ALONE_AFTER, ..asked };
        assert_eq!(state.next(&later), AttachmentState::Over(Why::Alone));
    }

    #[test]
    fn a_worker_of_osqueryd_s_that_is_stopped_or_killed_is_followed_by_another_one() {
        let stopped = Observation { manager_is_gone: true, ..seen() };
        assert_eq!(AttachmentState::Attached.next(&stopped), AttachmentState::Ending);
        let gone = Observation { osqueryd_lives: false, ..stopped };
        assert_eq!(AttachmentState::Ending.next(&gone), AttachmentState::Away(gone.now));
        assert_eq!(AttachmentState::Attached.next(&gone), AttachmentState::Away(gone.now));
        let waited = Observation { now: gone.now + gone.return_limit, ..gone };
        assert_eq!(AttachmentState::Away(gone.now).next(&gone), AttachmentState::Away(gone.now));
        assert_eq!(AttachmentState::Away(gone.now).next(&waited), AttachmentState::Over(Why::NoReturn));
    }

    #[test]
    fn nothing_is_waited_for_when_all_of_osqueryd_is_gone_or_the_end_was_asked_for() {
        let gone = Observation { manager_is_gone: true, osqueryd_lives: false, ..seen() };
        for over in [Observation { parent_lives: false, ..gone }, Observation { asked_to_end: true, ..gone }] {
            for state in [AttachmentState::Attached, AttachmentState::Ending, AttachmentState::Away(gone.now)] {
                assert_eq!(state.next(&over), AttachmentState::Over(Why::WithOsqueryd), "{state:?}");
            }
        }
        // Its parent alone: osqueryd's own worker ends by itself then.
        assert_eq!(
            AttachmentState::Attached.next(&Observation { parent_lives: false, ..seen() }),
            AttachmentState::Attached
        );
    }
}
