//! Processes are killed, ours and osqueryd's, while lines are logged.

use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::lines::{Count, Load, count_beside_filesystem};
use crate::processes::signal;
use crate::rig::{Host, Real, number, random_moment, real, say};

/// A worker that ends within 4 s of its start counts for osqueryd's watcher as one that can't live.
const WORKERS_LIFE: Duration = Duration::from_secs(5);

/// Rounds of what takes osqueryd some seconds each.
fn rounds() -> usize {
    number("REAL_STOPS", 3)
}

fn host(real: &Real, load: Load, logger: &str) -> Host {
    let host = Host::new(real, load.config());
    host.flag("logger_plugin", logger);
    host
}

/// Ends the schedule, waits for the rest and stops, when osqueryd lives; answers how it ended.
fn finish(host: &Host, is_complete: impl FnMut() -> bool) -> Option<i32> {
    if host.runs() {
        host.end_schedule();
        host.settled(is_complete);
        host.stop().code()
    } else {
        host.ended().code()
    }
}

/// Kills our worker at random moments until it was enough, or osqueryd has ended: how often.
fn kill_our_worker(host: &Host) -> usize {
    let wanted = number("REAL_KILLS", 10);
    let next = |before: Option<Pid>| {
        let other = || host.roles().worker.filter(|&worker| Some(worker) != before);
        host.wait_unless_it_ends("our worker", other)
    };
    let mut worker = next(None);
    for kills in 0..wanted {
        let Some(pid) = worker else { return kills };
        random_moment(Duration::from_millis(10), Duration::from_millis(1000));
        signal(pid, Signal::KILL);
        worker = next(Some(pid));
    }
    wanted
}

fn our_worker_is_killed(logger: &str, load: Load, count: impl Fn(&Host) -> Count) {
    let Some(real) = real() else { return };
    let host = host(&real, load, logger);
    // Every kind of call is to be hit: configurations, distributed queries and status lines, too.
    host.flag("config_refresh", "1");
    host.start();
    host.more_results(1);
    let before = host.roles();
    let kills = kill_our_worker(&host);
    let after = host.runs().then(|| host.roles());
    let end = finish(&host, || count(&host).missing == 0);
    let count = count(&host);
    say(&format!("{logger}: {kills} kills, osqueryd's exit code {end:?}: {count}"));
    let after = after.unwrap_or_else(|| panic!("osqueryd ended with {end:?} after {kills} kills: {count}"));
    assert_eq!(after.osqueryd_worker, before.osqueryd_worker, "osqueryd's worker was replaced");
    assert_eq!(after.front, before.front, "our first process was replaced");
    assert_eq!(end, Some(0));
    assert_eq!(count.missing, 0, "{count}");
}

#[test]
fn our_worker_whole_queries_nothing_is_missing() {
    let load = Load::bursts(4).and_singles(20);
    our_worker_is_killed("remote_tls", load, |host| load.count(host));
}

#[test]
fn our_worker_line_by_line_nothing_is_missing() {
    // osqueryd looks at a query's last line only: where it is the only one, no failure goes unseen.
    let load = Load::bursts(4).and_singles(20);
    our_worker_is_killed("filesystem,remote_tls", load, count_beside_filesystem);
}

/// Kills our first process again and again until it was enough, or osqueryd has ended: how often.
fn kill_our_front(host: &Host) -> usize {
    for kills in 1..=rounds() {
        random_moment(Duration::from_secs(2), Duration::from_secs(5));
        let Some(front) = host.wait_unless_it_ends("our first process", || host.roles().front) else {
            return kills - 1;
        };
        signal(front, Signal::KILL);
        let is_next = || host.roles().front.filter(|&pid| pid != front);
        let tables = || host.try_sql("SELECT stream FROM remote_tls_buffer").ok();
        let lines = host.server.result_count();
        let more = || (host.server.result_count() > lines).then_some(());
        let lives = host
            .wait_unless_it_ends("our next first process", is_next)
            .and_then(|_| host.wait_unless_it_ends("its registration", tables))
            .and_then(|_| host.wait_unless_it_ends("more lines", more));
        if lives.is_none() {
            return kills;
        }
    }
    rounds()
}

/// A kill that hits the call of a query's last line ends osqueryd, by a rule of its own that no extension can change
/// (exit code 78). Of a burst's lines one is the last, so few kills do: another osqueryd takes the test's place then, and
/// three in a row would be no chance.
#[test]
fn our_first_process_line_by_line_only_calls_in_flight_are_missing() {
    const TRIALS: usize = 3;
    const REFUSED_LAST_LINE: Option<i32> = Some(78);
    let Some(real) = real() else { return };
    for trial in 1..=TRIALS {
        let host = host(&real, Load::bursts(1), "filesystem,remote_tls");
        host.start();
        host.more_results(1);
        let kills = kill_our_front(&host);
        let lives = host.runs();
        let end = finish(&host, || count_beside_filesystem(&host).missing == 0);
        let count = count_beside_filesystem(&host);
        say(&format!("{kills} kills, osqueryd's exit code {end:?}: {count}"));
        // Its scheduler makes one call at a time.
        assert!(count.missing <= kills, "{count}");
        if lives {
            return;
        }
        assert!(trial < TRIALS && end == REFUSED_LAST_LINE, "osqueryd ended with {end:?} after {kills} kills: {count}");
        say("a kill has hit a query's last line: once more");
    }
}

#[test]
fn our_first_process_whole_queries_only_calls_in_flight_are_missing() {
    let Some(real) = real() else { return };
    let load = Load::bursts(1);
    let host = host(&real, load, "remote_tls");
    host.start();
    host.more_results(1);
    let kills = kill_our_front(&host);
    let lives = host.runs();
    let end = finish(&host, || load.is_complete(&host));
    let count = load.count(&host);
    say(&format!("{kills} kills, osqueryd's exit code {end:?}: {count}"));
    assert!(lives, "osqueryd ended with {end:?} after {kills} kills: {count}");
    // A call is a whole run.
    assert!(count.runs_missing <= kills, "{count}");
}

#[test]
fn osqueryd_s_worker_only_the_line_on_its_way_is_missing() {
    let Some(real) = real() else { return };
    let host = host(&real, Load::bursts(4).and_singles(5), "filesystem,remote_tls");
    host.start();
    host.more_results(1);
    let front = host.roles().front;
    let mut worker = host.wait("osqueryd's worker", || host.roles().osqueryd_worker);
    for _ in 0..rounds() {
        random_moment(WORKERS_LIFE, WORKERS_LIFE + Duration::from_secs(2));
        signal(worker, Signal::KILL);
        let killed = worker;
        worker = host.wait("osqueryd's next worker", || host.roles().osqueryd_worker.filter(|&pid| pid != killed));
        host.more_results(1);
    }
    assert_eq!(host.roles().front, front, "our first process was replaced");
    let end = finish(&host, || count_beside_filesystem(&host).missing == 0);
    let count = count_beside_filesystem(&host);
    say(&format!("{} kills, osqueryd's exit code {end:?}: {count}", rounds()));
    assert_eq!(end, Some(0));
    // The one that the filesystem logger had and ours was about to be given.
    assert!(count.missing <= rounds(), "{count}");
}

#[test]
fn all_processes_at_once_only_the_line_on_its_way_is_missing() {
    let Some(real) = real() else { return };
    let host = host(&real, Load::bursts(4).and_singles(5), "filesystem,remote_tls");
    for _ in 0..rounds() {
        host.start();
        host.more_results(1);
        random_moment(Duration::from_secs(1), Duration::from_secs(4));
        host.processes().into_iter().for_each(|pid| signal(pid, Signal::KILL));
        host.ended();
        host.nothing_is_left();
        host.unlocked();
    }
    host.start();
    let end = finish(&host, || count_beside_filesystem(&host).missing == 0);
    let count = count_beside_filesystem(&host);
    say(&format!("{} times all of them, exit code {end:?}: {count}", rounds()));
    assert_eq!(end, Some(0));
    assert!(count.missing <= rounds(), "{count}");
}
