//! Local processes that connect to the extension's socket: osqueryd's user and root can.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testkit::server::{Answer, Endpoint};

use super::forget_peak;
use crate::rig::{LIMIT, Rig, Setup, line, memory_of};

fn connect(rig: &Rig) -> UnixStream {
    UnixStream::connect(rig.extension_socket()).unwrap()
}

/// Issue 15: 64 silent connections took all threads, and each further round cost the next line a second.
#[test]
fn silent_connections_hold_up_no_line_and_kill_no_worker() {
    let rig = Rig::start();
    rig.config();
    let worker = rig.worker_pid();
    let five_lines = |first: u64| {
        let began = Instant::now();
        (first..first + 5).for_each(|n| rig.log(&line(n)));
        began.elapsed()
    };
    let usual = five_lines(0);
    let silent: Vec<UnixStream> = (0..250).map(|_| connect(&rig)).collect();
    let took = five_lines(5);
    // With a thread each for 64 of them, the others come into their turns a second later each time: more than 3 s. A busy
    // machine takes its time for both.
    assert!(took < Duration::from_secs(2) + 20 * usual, "{took:?}, and {usual:?} without them");
    rig.config();
    assert_eq!(rig.worker_pid(), worker);
    drop(silent);
    assert_eq!(rig.delivered(10), (0..10).collect::<Vec<_>>());
}

/// Issue 15: a byte each 0.4 s was once enough to be left alone, and a line waited for 28 s.
#[test]
fn connections_that_speak_a_byte_at_a_time_hold_up_no_line() {
    let rig = Rig::start();
    rig.config();
    let usual = Instant::now();
    rig.log(&line(0));
    let usual = usual.elapsed();
    let mut dripping: Vec<UnixStream> = (0..80).map(|_| connect(&rig)).collect();
    let (is_over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut message = [&[0x80, 1, 0, 1, 0, 0, 0, 4][..], b"call", &[0; 200]].concat().into_iter();
            while !is_over.load(Ordering::SeqCst)
                && let Some(byte) = message.next()
            {
                dripping.iter_mut().for_each(|stream| drop(stream.write_all(&[byte])));
                rounds.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(400));
            }
        });
        rig.osqueryd.wait("some bytes of each", LIMIT, || (rounds.load(Ordering::SeqCst) >= 5).then_some(()));
        for n in 1..6 {
            let began = Instant::now();
            rig.log(&line(n));
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5) + 20 * usual, "line {n}: {took:?}, and {usual:?} without them");
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert_eq!(rig.delivered(6), (0..6).collect::<Vec<_>>());
}

/// The worker takes its time over a call that it asks the server for: 70 of them were once in the lines' way. 100 could
/// stop all threads for ever.
#[test]
fn calls_that_wait_for_the_server_hold_up_no_line() {
    const CALLERS: usize = 250;
    let rig = Setup::new().own_flag("--request_timeout=10").start();
    rig.config();
    rig.server.always(Endpoint::DistributedRead, Some(Answer::hang()));
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                // On a busy machine one may come too late to say its first word.
                drop(rig.osqueryd.call("distributed", "remote_tls", &[("action", b"getQueries")]));
                answered.fetch_add(1, Ordering::SeqCst);
            });
        }
        // Those that are too many are told so, and the others wait.
        rig.server.wait("answers", LIMIT, |_| (answered.load(Ordering::SeqCst) >= CALLERS - 40).then_some(()));
        for n in 0..5 {
            let began = Instant::now();
            rig.log(&line(n));
            assert!(began.elapsed() < Duration::from_secs(5), "line {n}: {:?}", began.elapsed());
        }
    });
    rig.server.always(Endpoint::DistributedRead, None);
    assert_eq!(rig.delivered(5), (0..5).collect::<Vec<_>>());
}

/// Issue 15, the same silent connections: they are ended, too.
#[test]
fn connections_that_never_speak_are_ended_when_they_are_many() {
    let rig = Rig::start();
    let mut silent: Vec<UnixStream> = (0..40).map(|_| connect(&rig)).collect();
    // The first ones: a few may stay.
    for stream in silent.iter_mut().take(20) {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    rig.log(&line(1));
}

/// Issue 15: memory was reserved for the length that a string announced.
#[test]
fn a_string_that_is_announced_is_no_memory_reserved() {
    let rig = Rig::start();
    rig.config();
    let processes = [rig.pid(), rig.worker_pid()];
    let idle = processes.map(|process| memory_of(process, "VmRSS:"));
    processes.iter().for_each(|process| forget_peak(*process));
    let string = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let message = |name: &str| [&[0x80, 1, 0, 1][..], &string(name), &[0, 0, 0, 7]].concat();
    let mut connections = Vec::new();
    for announced in [0x7fff_ffff_u32, 0x3fff_0000, 0x1000_0000] {
        let length = announced.to_be_bytes();
        let registry = [&message("call")[..], &[11, 0, 1], &string("distributed"), &[11, 0, 2]].concat();
        let request = [&registry[..], &string("remote_tls"), &[13, 0, 3, 11, 11, 0, 0, 0, 1], &length].concat();
        for bytes in [
            // A method's name, an argument, a request's name; and a map, and a list, of so many.
            [&[0x80, 1, 0, 1][..], &length].concat(),
            [&registry[..], &length, b"short"].concat(),
            [&request[..], b"short"].concat(),
            [&message("call")[..], &[13, 0, 3, 11, 11], &length].concat(),
            [&message("ping")[..], &[15, 0, 1, 12], &length].concat(),
        ] {
            let mut stream = connect(&rig);
            // It may be ended at once.
            let _ = stream.write_all(&bytes);
            connections.push(stream);
        }
    }
    rig.log(&line(1));
    assert_eq!(rig.delivered(1), [1]);
    for (process, idle) in processes.into_iter().zip(idle) {
        let peak = memory_of(process, "VmHWM:").saturating_sub(idle);
        assert!(peak < 16 << 10, "{peak} KiB over idle");
    }
}
