//! What things cost: printed, and only when asked for (`JOURNAL_MEASURE=1 cargo test --release --lib journal::tests::measure
//! -- --nocapture --test-threads 1`).

use std::time::Instant;

use super::*;

fn is_asked_for() -> bool {
    let asked = std::env::var_os("JOURNAL_MEASURE").is_some();
    if !asked {
        println!("not measured: JOURNAL_MEASURE is not set");
    }
    asked
}

/// The median and the 99th percentile, in microseconds.
fn microseconds(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    (at(50), at(99))
}

fn appends(rig: &Rig, record: &[u8], count: usize) -> Vec<Duration> {
    (0..count)
        .map(|_| {
            let began = Instant::now();
            rig.writer.append(record);
            began.elapsed()
        })
        .collect()
}

#[test]
fn the_cost_of_an_append_does_not_depend_on_the_backlog() {
    if !is_asked_for() {
        return;
    }
    let record = format!("{{\"name\":\"{}\"}}", "x".repeat(488));
    let (empty, full) = (Rig::new(), Rig::new());
    appends(&full, record.as_bytes(), 1_000_000);
    let mut times = [Vec::new(), Vec::new()];
    // By turns, so that both see the same machine.
    for _ in 0..100 {
        times[0].extend(appends(&empty, record.as_bytes(), 500));
        times[1].extend(appends(&full, record.as_bytes(), 500));
        empty.take_all();
    }
    let [(empty, empty_99), (full, full_99)] = times.map(microseconds);
    println!("append of {} bytes: p50 {empty:.2} us, p99 {empty_99:.2} us", record.len());
    println!("the same with 1,000,000 lines waiting: p50 {full:.2} us, p99 {full_99:.2} us: {:.3} x", full / empty);
}

#[test]
fn peeks_go_at_the_speed_of_memory() {
    if !is_asked_for() {
        return;
    }
    for (what, record) in [
        ("plain lines", format!("{{\"name\":\"{}\"}}", "x".repeat(488))),
        ("batches of 100 lines", batch_of_long_rows(100)),
    ] {
        let rig = Rig::new();
        let count = (400 << 20) / record.len();
        (0..count).for_each(|_| rig.writer.append(record.as_bytes()));
        let (mut bytes, mut lines) = (0, 0);
        let began = Instant::now();
        loop {
            let waiting = rig.reader.peek(1 << 20).unwrap();
            let Waiting::Records(chunk) = waiting else { break };
            bytes += chunk.bytes().len();
            lines += chunk.records().map(|record| record.lines()).sum::<u64>();
            rig.reader.acknowledge(chunk.end());
        }
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "peek and acknowledge of {what} in chunks of 1 MiB: {:.2} GB/s, {:.0} lines/s",
            bytes as f64 / seconds / 1e9,
            lines as f64 / seconds
        );
    }
}

#[test]
fn lines_are_counted_as_fast_as_they_come() {
    if !is_asked_for() {
        return;
    }
    let difference = batch_of_long_rows(100_000);
    let element = serde_json::to_string(&format!("{{\"name\":\"q\",\"columns\":{{{}}}}}", COLUMNS)).unwrap();
    let batch = format!("{{\"string_batch\":[{}]}}", vec![element; 50_000].join(","));
    for (what, record) in [("a difference", &difference), ("a batch of strings", &batch)] {
        let mut counter = LineCounter::default();
        let began = Instant::now();
        let mut lines = 0;
        for _ in 0..10 {
            record.as_bytes().chunks(64 << 10).for_each(|piece| counter.feed(piece));
            lines += counter.finish();
        }
        let speed = 10.0 * record.len() as f64 / began.elapsed().as_secs_f64() / 1e6;
        println!("{what} of {} bytes, {} lines: {speed:.0} MB/s", record.len(), lines / 10);
    }
}

#[test]
fn a_large_record_is_taken_as_fast_as_the_disk_goes() {
    if !is_asked_for() {
        return;
    }
    let rig = Rig::new();
    let record = batch_of_long_rows(500_000);
    let began = Instant::now();
    let mut incoming = Incoming::begin(&rig.writer);
    record.as_bytes().chunks(64 << 10).for_each(|piece| incoming.write(piece));
    incoming.commit();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "a large record of {} bytes: {seconds:.3} s, {:.0} MB/s",
        record.len(),
        record.len() as f64 / seconds / 1e6
    );
    let began = Instant::now();
    assert!(matches!(rig.reader.peek(1 << 20), Ok(Waiting::Large(_))));
    println!("its first peek: {:.3} s", began.elapsed().as_secs_f64());
}

const COLUMNS: &str = r#""pid":"640","name":"systemd-udevd","path":"/usr/lib/systemd/systemd-udevd","cmdline":"/lib/systemd/systemd-udevd --daemon","state":"S","cwd":"/","root":"/","uid":"0","gid":"0","euid":"0","egid":"0","suid":"0","sgid":"0","on_disk":"1","wired_size":"0","resident_size":"7372000","total_size":"26492000""#;

fn batch_of_long_rows(rows: usize) -> String {
    let row = format!("{{{COLUMNS}}}");
    format!("{{\"diffResults\":{{\"removed\":[],\"added\":[{}]}},\"name\":\"q\"}}", vec![row; rows].join(","))
}
