//! How the stand-in ends, and what it does to lines and processes.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process};

use super::extension::{Fake, usual};
use super::life::with_sleeper;
use crate::osqueryd::thrift_api::TExtensionSyncClient;
use crate::osqueryd::{CallOutcome, Options, Osqueryd, Row};

const LIMIT: Duration = Duration::from_secs(20);
/// Two queries of the same second: many lines, and then one.
const LINES: usize = 400;
const CONFIG: &str = r#"{"schedule": {
    "a_many": {"query": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 400) SELECT n FROM c",
        "interval": 1},
    "b_one": {"query": "SELECT 'last' AS n", "interval": 1}
}}"#;

/// A logger that takes every line, some time after it got it.
fn slow() -> impl Fn(&str, &Row) -> CallOutcome + Send + Sync + 'static {
    let usual = usual(CONFIG);
    move |registry, request| {
        if request.contains_key("string") {
            thread::sleep(Duration::from_millis(1));
        }
        usual(registry, request)
    }
}

/// An osqueryd that has logged some of a query's lines.
fn in_mid_logging(dir: &Path, change: impl FnOnce(&mut Options)) -> (Osqueryd, Fake) {
    let mut options = with_sleeper(dir).flag("schedule_splay_percent", "1");
    options.scheduler = true;
    change(&mut options);
    let daemon = Osqueryd::launch(options).unwrap();
    let fake = Fake::start(&daemon.socket(), slow()).unwrap();
    daemon.wait("some lines", LIMIT, || (daemon.lines_logged() >= 10).then_some(()));
    (daemon, fake)
}

/// The state of a process, as in `/proc`.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn peer(daemon: &Osqueryd) -> u32 {
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get() as u32
}

#[test]
fn the_worker_is_a_process_that_is_a_zombie_until_it_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path());
    options.watch_interval = Duration::from_secs(3600);
    let daemon = Osqueryd::start_bare(options);
    let pid = daemon.worker_pid();
    assert_ne!(pid, std::process::id());
    assert_eq!(peer(&daemon), pid);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("PPid:\t{}\n", std::process::id())), "{status}");
    let row = daemon.query("select pid, watcher from osquery_info").unwrap().remove(0);
    assert_eq!((&row["pid"], &row["watcher"]), (&pid.to_string(), &std::process::id().to_string()));
    daemon.kill_worker();
    daemon.wait("a zombie", LIMIT, || (state(pid) == Some('Z')).then_some(()));
    daemon.start_worker().unwrap();
    assert_eq!(state(pid), None);
    assert_ne!(daemon.worker_pid(), pid);
    assert_eq!(peer(&daemon), daemon.worker_pid());
}

#[test]
fn who_kills_the_process_kills_the_worker_and_who_asks_it_to_end_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()));
    for signal in [Signal::KILL, Signal::TERM] {
        let mut fake = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
        assert!(fake.manager.ping().is_ok());
        kill_process(Pid::from_raw(daemon.worker_pid() as i32).unwrap(), signal).unwrap();
        daemon.wait("the hang-up", LIMIT, || fake.manager.ping().is_err().then_some(()));
        daemon.wait("the end of its process", LIMIT, || state(daemon.worker_pid()).is_none().then_some(()));
        let swept = signal == Signal::TERM;
        assert_eq!((!fake.socket.exists(), !daemon.socket().exists()), (swept, swept), "{signal:?}");
        assert_eq!(fake.shutdowns(), usize::from(swept));
        daemon.start_worker().unwrap();
    }
    assert_eq!(daemon.exit_code(), None);
}

#[test]
fn a_clean_stop_sweeps_the_names_away_and_goes_on_logging() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, mut fake) = in_mid_logging(dir.path(), |_| ());
    let worker = daemon.worker_pid();
    let report = daemon.stop();
    let stop = report.worker.unwrap();
    assert_eq!((stop.pid, stop.killed, stop.status.unwrap().code()), (worker, false, Some(0)));
    assert_eq!(state(worker), None);
    // All the lines of that second were logged, those of its second query, too. Most of them were lost, and the
    // last one with them, which no longer matters to a daemon that is ending.
    assert_eq!((daemon.lines_logged(), daemon.exit_code()), (LINES as u64 + 1, Some(0)));
    let taken = fake.values("string").len() as u64;
    assert_eq!(daemon.lines_lost(), LINES as u64 + 1 - taken);
    assert!((10..LINES as u64 / 2).contains(&taken), "{taken} lines were taken");
    assert!(fake.manager.ping().is_err());
    assert_eq!(fake.shutdowns(), 1);
    assert_eq!(report.sockets_left, Vec::<std::path::PathBuf>::new());
}

/// How many lines are lost in a stop in which a thread puts the name back.
fn lost_with_the_name_kept() -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, fake) = in_mid_logging(dir.path(), |_| ());
    let kept = dir.path().join("kept");
    fs::hard_link(&fake.socket, &kept).unwrap();
    let over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let _ = fs::hard_link(&kept, &fake.socket);
                thread::sleep(Duration::from_micros(50));
            }
        });
        let report = daemon.stop();
        over.store(true, Ordering::SeqCst);
        report
    });
    assert_eq!(daemon.lines_logged(), LINES as u64 + 1);
    // What is left behind is told.
    assert_eq!(report.sockets_left, [fake.socket]);
    daemon.lines_lost()
}

#[test]
fn an_extension_that_keeps_its_name_loses_next_to_nothing_in_a_stop() {
    // On a busy machine that thread may be without a processor just then; hardly in three stops.
    let lost: Vec<u64> = (0..3).map(|_| lost_with_the_name_kept()).collect();
    assert!(lost.iter().any(|lost| *lost < LINES as u64 / 20), "{lost:?} lines are lost");
    // Without the thread, more than half of them are (above).
    assert!(lost.iter().all(|lost| *lost < LINES as u64 / 2), "{lost:?} lines are lost");
}

#[test]
fn the_watchdog_stops_the_worker_alone_and_another_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, fake) = in_mid_logging(dir.path(), |_| ());
    let (worker, children) = (daemon.worker_pid(), daemon.children());
    let stopped = thread::scope(|scope| {
        let stopped = scope.spawn(|| daemon.watchdog_stop());
        daemon.wait("another worker", LIMIT, || (daemon.worker_pid() != worker).then_some(()));
        assert_eq!(daemon.lines_logged(), LINES as u64 + 1);
        // It waits for its plugins, as the first one did.
        let again = Fake::start(&daemon.socket(), usual(CONFIG)).unwrap();
        assert_eq!(daemon.uuid("remote_tls"), Some(again.uuid));
        stopped.join().unwrap()
    });
    let stop = stopped.unwrap().unwrap();
    assert_eq!((stop.pid, stop.killed), (worker, false));
    assert!(daemon.lines_lost() > 0 && !fake.socket.exists());
    assert_eq!((daemon.children(), daemon.exits().len(), daemon.exit_code()), (children, 0, None));
    assert!(daemon.is_up());
}

#[test]
fn a_worker_that_does_not_end_in_time_is_killed() {
    const TAKEN: u64 = 10;
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_sleeper(dir.path());
    options.scheduler = true;
    options.kill_after = Some(Duration::from_millis(100));
    let daemon = Osqueryd::launch(options).unwrap();
    let (asked, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (asking, ending, usual) = (Arc::clone(&asked), Arc::clone(&over), usual(CONFIG));
    let _fake = Fake::start(&daemon.socket(), move |registry, request| {
        let hangs = request.contains_key("string") && asking.fetch_add(1, Ordering::SeqCst) >= TAKEN;
        while hangs && !ending.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        usual(registry, request)
    });
    daemon.wait("a call that hangs", LIMIT, || (asked.load(Ordering::SeqCst) > TAKEN).then_some(()));
    let report = daemon.stop();
    over.store(true, Ordering::SeqCst);
    let stop = report.worker.unwrap();
    assert!(stop.killed && stop.status.unwrap().code().is_none(), "{stop:?}");
    assert!(stop.took >= Duration::from_millis(100), "{stop:?}");
    // Nothing is logged by a process that is gone, and what it had in its hands was not refused.
    assert_eq!((daemon.lines_logged(), daemon.lines_lost(), asked.load(Ordering::SeqCst)), (TAKEN, 0, TAKEN + 1));
}

#[test]
fn only_the_last_line_of_a_query_ends_osqueryd() {
    for (refused, code) in [("\"200\"", None), ("\"400\"", Some(78))] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Osqueryd::start_bare(Options::new(dir.path()));
        let usual = usual(CONFIG);
        let _fake = Fake::start(&daemon.socket(), move |registry, request| {
            match request.get("string").is_some_and(|line| line.contains(refused)) {
                true => CallOutcome { code: 1, ..CallOutcome::default() },
                false => usual(registry, request),
            }
        });
        daemon.gen_config();
        assert!(daemon.run_scheduled("a_many"));
        assert_eq!((daemon.lines_logged(), daemon.lines_lost()), (LINES as u64, 1));
        assert_eq!(daemon.exit_code(), code, "{refused}");
        let said = daemon.transcript().contains("Error logging the results of query: a_many");
        assert_eq!(said, code.is_some());
        if code.is_some() {
            daemon.wait("the end of all", LIMIT, || daemon.is_over().then_some(()));
        }
    }
}

#[test]
fn a_failed_last_line_ends_the_worker_first_and_the_extension_at_the_next_look() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_sleeper(dir.path());
    options.watch_interval = Duration::from_secs(1);
    let daemon = Osqueryd::start_bare(options);
    let _fake = Fake::start(&daemon.socket(), |_, _| CallOutcome { code: 1, ..CallOutcome::default() });
    let worker = daemon.worker_pid();
    daemon.wait("the extension", LIMIT, || (daemon.children().len() == 1).then_some(()));
    daemon.log_string("{}");
    daemon.wait("the worker's end", LIMIT, || matches!(state(worker), None | Some('Z')).then_some(()));
    assert_eq!((daemon.children().len(), daemon.is_over()), (1, false));
    daemon.wait("the end of all", LIMIT, || daemon.is_over().then_some(()));
    assert_eq!((daemon.children().len(), daemon.exit_code()), (0, Some(78)));
}

#[test]
fn four_early_deaths_of_the_worker_end_the_watcher() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_sleeper(dir.path());
    options.restarts_worker = true;
    for (registry, plugin) in [("config", "filesystem"), ("logger", "filesystem"), ("distributed", "tls")] {
        options = options.flag(&format!("{registry}_plugin"), plugin);
    }
    let daemon = Osqueryd::start(options).unwrap();
    let mut deaths = 0;
    while daemon.exit_code().is_none() {
        let worker = daemon.worker_pid();
        daemon.kill_worker();
        deaths += 1;
        let next = || (daemon.worker_pid() != worker || daemon.exit_code().is_some()).then_some(());
        daemon.wait("another worker, or the end", LIMIT, next);
    }
    // On a busy machine not every death is early.
    assert!((4..50).contains(&deaths), "{deaths}");
    assert!(daemon.transcript().contains("early deaths so far: 3"));
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(daemon.transcript().contains("Too many worker restarts"));
    daemon.wait("the end of all", LIMIT, || daemon.is_over().then_some(()));
    assert!(daemon.children().is_empty());
}

#[test]
fn an_extension_comes_back_at_the_watcher_s_next_look() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = with_sleeper(dir.path());
    options.watch_interval = Duration::from_secs(1);
    let begun = Instant::now();
    let daemon = Osqueryd::start_bare(options);
    let first = daemon.wait("the extension", LIMIT, || daemon.extension_pid("sleeper"));
    daemon.signal(first, 9);
    daemon.wait("the next", LIMIT, || daemon.extension_pid("sleeper").filter(|next| *next != first));
    // Two starts are two looks.
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(daemon.exits().len(), 1);
}

#[test]
fn a_stop_waits_for_what_a_test_does_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Osqueryd::start_bare(Options::new(dir.path()));
    let (asked, answers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (asking, answering) = (Arc::clone(&asked), Arc::clone(&answers));
    let _fake = Fake::start(&daemon.socket(), move |_, _| {
        asking.fetch_add(1, Ordering::SeqCst);
        while !answering.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        CallOutcome::default()
    });
    thread::scope(|scope| {
        let call = scope.spawn(|| daemon.call("config", "remote_tls", &[("action", b"genConfig")]));
        daemon.wait("the call", LIMIT, || (asked.load(Ordering::SeqCst) == 1).then_some(()));
        let stop = scope.spawn(|| daemon.stop());
        daemon.wait("the sweep", LIMIT, || (!daemon.socket().exists()).then_some(()));
        assert!(!stop.is_finished() && state(daemon.worker_pid()).is_some());
        answers.store(true, Ordering::SeqCst);
        assert!(call.join().unwrap().unwrap().is_ok());
        assert!(!stop.join().unwrap().worker.unwrap().killed);
    });
}
