//! The load: threads that call the extension as osqueryd's own do, and the entries of what the server gets.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;

use super::gate::{Gate, Visit};
use super::ledger::{Books, Promise, Quality};
use super::lines::{self, Kind};
use super::lock;
use super::schedule::Pace;
use crate::server::{Server, Taken};

/// Lines that come at once in bursts, a thread.
const BURST: u32 = 100;

/// Announcements of lost lines that are kept.
const LOSSES: usize = 10;

/// Logs result lines, of all kinds and in every call that can carry them.
pub(super) fn log_results(gate: &Gate, books: &Books, mut random: Rng) {
    let mut in_burst = 0;
    while let Some(visit) = gate.enter() {
        log_result(&visit, books, &mut random);
        in_burst = (in_burst + 1) % BURST;
        let pause = match visit.pace {
            Pace::Bursts if in_burst > 0 => 0,
            Pace::Bursts => random.u64(1000..3000),
            Pace::Moderate | Pace::Off => random.u64(..100),
        };
        drop(visit);
        gate.pause(Duration::from_millis(pause));
    }
}

fn log_result(visit: &Visit<'_>, books: &Books, random: &mut Rng) {
    if random.u32(..20) == 0 {
        return log_batch(visit, books, random);
    }
    let kind = Kind::draw(random);
    let n = lock(&books.results).draw(kind.quality());
    let line = lines::result(kind, n, random);
    let request: &[(&str, &[u8])] = match random.u32(..8) {
        0 => &[("snapshot", &line)],
        _ => &[("category", b"event"), ("string", &line)],
    };
    if visit.call(books, Promise::Zero, "logger", request) {
        lock(&books.results).take(n);
    }
}

fn log_batch(visit: &Visit<'_>, books: &Books, random: &mut Rng) {
    let numbers: Vec<u64> = (0..random.u32(2..20)).map(|_| lock(&books.results).draw(Quality::Sound)).collect();
    let line = |n: &u64| String::from_utf8_lossy(&lines::result(Kind::Event, *n, random)).into_owned();
    let batch = numbers.iter().map(line).collect::<Value>().to_string();
    if visit.call(books, Promise::Zero, "logger", &[("string_batch", batch.as_bytes())]) {
        numbers.iter().for_each(|n| lock(&books.results).take(*n));
    }
}

/// Logs lines of osqueryd's own log.
pub(super) fn log_statuses(gate: &Gate, books: &Books, mut random: Rng) {
    while let Some(visit) = gate.enter() {
        let numbers: Vec<u64> = (0..random.u32(1..=5)).map(|_| lock(&books.statuses).draw(Quality::Sound)).collect();
        let log = lines::statuses(&numbers);
        if visit.call(books, Promise::Zero, "logger", &[("status", b"true"), ("log", log.as_bytes())]) {
            numbers.iter().for_each(|n| lock(&books.statuses).take(*n));
        }
        drop(visit);
        gate.pause(Duration::from_millis(random.u64(200..1500)));
    }
}

/// Asks for distributed queries and writes results. What is not taken is written again, as osqueryd does.
pub(super) fn run_distributed(gate: &Gate, books: &Books, server: &Server, mut random: Rng) {
    let mut unwritten = VecDeque::new();
    let mut asked = true;
    while let Some(visit) = gate.enter() {
        if asked {
            server.add_query("soak", "SELECT 1");
        }
        asked = visit.call(books, Promise::Answer, "distributed", &[("action", b"getQueries")]);
        let n = unwritten.pop_front().unwrap_or_else(|| lock(&books.distributed).draw(Quality::Sound));
        let results = lines::written(n);
        let request: [(&str, &[u8]); 2] = [("action", b"writeResults"), ("results", results.as_bytes())];
        if visit.call(books, Promise::Answer, "distributed", &request) {
            lock(&books.distributed).take(n);
        } else {
            unwritten.push_back(n);
        }
        drop(visit);
        gate.pause(Duration::from_millis(random.u64(500..2000)));
    }
}

/// Asks for the configuration.
pub(super) fn refresh_config(gate: &Gate, books: &Books, mut random: Rng) {
    while let Some(visit) = gate.enter() {
        visit.call(books, Promise::Answer, "config", &[("action", b"genConfig")]);
        drop(visit);
        gate.pause(Duration::from_millis(random.u64(2000..6000)));
    }
}

/// Enters what the server has accepted. Lines that aren't the soak's (osqueryd's own log) are left out.
pub(super) fn receive(books: &Books, taken: Taken<'_>) {
    match taken {
        Taken::Results(lines) => {
            let mut ledger = lock(&books.results);
            lines.iter().filter_map(|line| line["n"].as_u64()).for_each(|n| ledger.receive(n));
        }
        Taken::Statuses(lines) => lines.iter().for_each(|line| receive_status(books, line)),
        Taken::Written(body) => {
            let ids = body["queries"].as_object().into_iter().flat_map(|queries| queries.keys());
            ids.filter_map(|id| lines::number_of_message(id)).for_each(|n| lock(&books.distributed).receive(n));
        }
    }
}

fn receive_status(books: &Books, line: &Value) {
    let message = line["message"].as_str().unwrap_or_default();
    if let Some(n) = lines::number_of_message(message) {
        lock(&books.statuses).receive(n);
    } else if let Some(loss) = lines::loss(line) {
        let mut losses = lock(&books.losses);
        if losses.len() < LOSSES {
            losses.push(loss.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_accepts_is_entered_under_its_stream() {
        let books = Books::default();
        for ledger in [&books.results, &books.statuses, &books.distributed] {
            lock(ledger).draw(Quality::Sound);
        }
        receive(&books, Taken::Results(&[json!({"n": 0}), json!({"name": "another"})]));
        let loss =
            "2 lines of the results journal dropped so far; the last because more wait than buffered_log_max allows";
        let statuses = ["soak 0", "Created and monitoring extension child", loss]
            .map(|message| json!({"filename": "remote_tls", "message": message}));
        receive(&books, Taken::Statuses(&statuses));
        receive(&books, Taken::Written(&json!({"queries": {"soak 0": [], "soak": []}})));
        for ledger in [&books.results, &books.statuses, &books.distributed] {
            let ledger = lock(ledger);
            assert_eq!((ledger.received(), ledger.foreign()), (1, 0));
        }
        assert_eq!(*lock(&books.losses), [loss]);
    }
}
