//! What the host's owner counts: the binary, memory, wake-ups, and how soon it is there.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::osqueryd::Osqueryd;

use crate::Bench;
use crate::contenders::{Contender, Killed, our_options, wait_for};
use crate::cores::Cores;
use crate::lines;
use crate::load::{self, Amount, Caller};
use crate::processes::Memory;
use crate::report::{Bound, figure, mebibytes};
use crate::sink::{Sink, SinkSetup};
use crate::statistics::median;

/// This long after a start or a load, nothing of it goes on.
const SETTLED: Duration = Duration::from_secs(3);

/// The name of the threads that answer osqueryd.
const ANSWERING: &str = ", extension";

/// Between two looks at the memory under load.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of a line.
const SIZE: usize = 500;

/// Measures all of it.
pub(crate) fn run(bench: &mut Bench) {
    bench.report.title("Footprint: what the host's owner counts");
    let binary = std::fs::metadata(&bench.programs.extension).map_or(0, |file| file.len());
    let binary = mebibytes(binary as f64);
    bench.report.say(&format!("The binary has {} MiB.", figure(binary)));
    bench.report.target("footprint: binary", Bound::AtMost(5.0), "MiB", binary);
    start(bench);
    memory(bench);
    idle(bench);
}

/// From the start of the process to its registration, and to its first answer.
fn start(bench: &mut Bench) {
    let directory = tempfile::tempdir_in(&bench.programs.scratch).expect("a directory on disk");
    let sockets = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let socket = sockets.path().join("osquery.em");
    let options = our_options(directory.path(), &setup, &[("extensions_socket", &socket.display().to_string())]);
    let environment = options.env.clone();
    let osqueryd = Osqueryd::start_bare(options);
    let rounds = if bench.quick { 5 } else { 20 };
    let once = |round: usize| {
        let mut command = Command::new(&bench.programs.extension);
        command.arg("--socket").arg(&socket).args(["--timeout", "3", "--interval", "3"]).stderr(Stdio::null());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let began = Instant::now();
        let mut child = Killed(command.spawn().expect("the extension starts"));
        let registration = wait_for("the registration", || osqueryd.registrations().get(round).cloned());
        let served = format!("{}.{}", socket.display(), registration.uuid);
        wait_for("an answer", || Caller::new(served.as_ref()).pings().then_some(()));
        let answered = began.elapsed();
        let signal =
            rustix::process::kill_process(rustix::process::Pid::from_child(&child.0), rustix::process::Signal::TERM);
        signal.and_then(|()| child.0.wait().map(drop).map_err(|_| rustix::io::Errno::CHILD)).expect("it ends");
        (milliseconds(registration.at.duration_since(began)), milliseconds(answered))
    };
    let times: Vec<(f64, f64)> = (0..rounds).map(once).collect();
    let registered = median(times.iter().map(|time| time.0));
    let answering = median(times.iter().map(|time| time.1));
    let longest = times.iter().map(|time| time.1).fold(0.0, f64::max);
    bench.report.say(&format!(
        "From its start it takes {} ms until osqueryd has it registered and {} ms until it answers there (medians of \
         {rounds} starts; the longest took {} ms). osqueryd's own part is the stand-in's.",
        figure(registered),
        figure(answering),
        figure(longest),
    ));
    bench.report.target("footprint: registered and answering", Bound::AtMost(15.0), "ms", answering);
}

fn memory(bench: &mut Bench) {
    let idle = with_server(bench, settled);
    let time = Duration::from_secs(if bench.quick { 2 } else { 5 });
    let (under_load, afterwards) =
        with_server(bench, |contender| (most_under_load(contender, time), settled(contender)));
    let many = if bench.quick { 100_000 } else { 1_000_000 };
    let waiting = [1_000, many].map(|count| waiting(bench, count));
    let row = |name: String, memory: Memory| {
        let resident = figure(mebibytes(memory.resident as f64));
        vec![name, resident, figure(mebibytes(memory.proportional as f64))]
    };
    let rows = [
        row("idle".to_owned(), idle),
        row("under load: 4 threads log lines of 500 B, and they are delivered (the most seen)".to_owned(), under_load),
        row(format!("{} s after that", SETTLED.as_secs()), afterwards),
        row("1,000 lines wait, the server is away".to_owned(), waiting[0]),
        row(format!("{} lines wait, the server is away", figure(many as f64)), waiting[1]),
    ];
    bench.report.say("Memory of both processes together, in MiB. PSS counts a page that both have once; RSS twice.");
    bench.report.table(&["", "RSS", "PSS"], &rows);
    let proportional = |memory: Memory| mebibytes(memory.proportional as f64);
    bench.report.target("footprint: memory idle", Bound::AtMost(5.0), "MiB (PSS)", proportional(idle));
    bench.report.target("footprint: memory under load", Bound::AtMost(10.0), "MiB (PSS)", proportional(under_load));
    let more = proportional(waiting[1]) - proportional(waiting[0]);
    let what = format!("footprint: {} lines waiting, over 1,000", figure(many as f64));
    bench.report.target(what, Bound::AtMost(4.0), "MiB (PSS)", more);
}

/// Ours, with a server that takes what it delivers.
fn with_server<T>(bench: &Bench, using: impl FnOnce(&Contender) -> T) -> T {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let _sink = Sink::start(&setup);
    using(&Contender::ours(&bench.programs, &setup, &[]))
}

/// The memory, once nothing goes on any more.
fn settled(contender: &Contender) -> Memory {
    thread::sleep(SETTLED);
    contender.processes.memory()
}

fn most_under_load(contender: &Contender, time: Duration) -> Memory {
    let call = contender.log(&lines::line(0, SIZE));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = contender.processes.memory();
            while !over.load(Ordering::SeqCst) {
                thread::sleep(LOOK);
                let now = contender.processes.memory();
                most.resident = most.resident.max(now.resident);
                most.proportional = most.proportional.max(now.proportional);
            }
            most
        });
        load::drive(&contender.socket, &call, 4, Cores::Any, Amount { time, calls: usize::MAX });
        over.store(true, Ordering::SeqCst);
        looking.join().expect("a look at the memory")
    })
}

/// The memory of ours when lines wait, attempts to deliver them included.
fn waiting(bench: &Bench, count: u64) -> Memory {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setup = SinkSetup::new(directory.path());
    let contender = Contender::ours(&bench.programs, &setup, &[]);
    contender.fill(count, SIZE);
    settled(&contender)
}

/// Wake-ups and CPU time when nothing is to be done.
fn idle(bench: &mut Bench) {
    let window = Duration::from_secs(if bench.quick { 10 } else { 30 });
    let idle = with_server(bench, |contender| {
        thread::sleep(SETTLED);
        observe(contender, window)
    });
    bench.report.say(&format!(
        "Idle for {} s, both processes: voluntary context switches of all threads, and {} µs of CPU time a second. The \
         threads that answer osqueryd wake for its pings, one every 3 s.",
        window.as_secs(),
        figure(idle.cpu)
    ));
    let row = |name: &str, wake_ups: f64| vec![name.to_owned(), figure(wake_ups)];
    let rows = [row("of its own accord", idle.own()), row("for osqueryd's pings", idle.wake_ups() - idle.own())];
    bench.report.table(&["", "wake-ups a second"], &rows);
    bench.report.say(&format!("Who wakes (a second): {}.", idle.who()));
    bench.report.target("footprint: wake-ups of its own, idle", Bound::AtMost(1.0), "a second", idle.own());
}

/// What happened in a second of idleness.
struct Idle {
    /// Wake-ups, by thread.
    threads: BTreeMap<String, f64>,
    /// Microseconds.
    cpu: f64,
}

impl Idle {
    fn wake_ups(&self) -> f64 {
        self.threads.values().sum()
    }

    /// Without the threads that answer osqueryd.
    fn own(&self) -> f64 {
        let own = self.threads.iter().filter(|(name, _)| !name.ends_with(ANSWERING));
        own.map(|(_, wake_ups)| wake_ups).sum()
    }

    fn who(&self) -> String {
        let threads = self.threads.iter().filter(|(_, wake_ups)| **wake_ups > 0.0);
        threads.map(|(name, wake_ups)| format!("{name} {wake_ups:.2}")).collect::<Vec<_>>().join("; ")
    }
}

/// Watches for a while.
fn observe(contender: &Contender, window: Duration) -> Idle {
    let began = Instant::now();
    let (wake_ups, cpu) = (contender.processes.wake_ups(), contender.processes.threads());
    thread::sleep(window);
    let seconds = began.elapsed().as_secs_f64();
    let cpu = contender.processes.threads().since(&cpu).as_secs_f64() * 1e6 / seconds;
    let before = |name: &String| wake_ups.get(name).copied().unwrap_or(0);
    let now = contender.processes.wake_ups();
    let rate = |(name, count): (&String, &u64)| (name.clone(), (count - before(name)) as f64 / seconds);
    let threads = now.iter().map(rate).collect();
    Idle { threads, cpu }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
