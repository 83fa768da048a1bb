//! Result lines as osqueryd writes them, of a wanted size.

use std::fmt::Write;

/// How each line begins, and nothing in it does again: by this the sink counts them.
pub(crate) const BEGINNING: &str = "{\"name\":\"bench_processes\",";

/// Words of which command lines are made, so that a compressor finds in them what it finds in real ones.
const WORDS: [&str; 16] = [
    "/usr/bin/python3",
    "/opt/service/bin/worker",
    "--config",
    "--listen",
    "/etc/service/main.conf",
    "0.0.0.0:8080",
    "--log-level=info",
    "-Xmx512m",
    "--data-dir",
    "/var/lib/service/",
    "--worker-threads",
    "--pidfile",
    "/run/service/",
    "https://service.example.com/api/v1/",
    "--token-file",
    "java",
];

/// The line number `n`, `size` bytes long.
///
/// # Panics
/// When `size` is less than what a line needs, about 190 bytes.
pub(crate) fn line(n: u64, size: usize) -> String {
    let mut random = Random(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut line = format!(
        "{BEGINNING}\"hostIdentifier\":\"host-17.example.com\",\"unixTime\":{},\"counter\":{n},\
         \"columns\":{{\"pid\":\"{}\",\"name\":\"worker\",\"cmdline\":\"",
        1_795_409_106 + n / 100,
        random.next() % 65536,
    );
    const END: &str = "\"},\"action\":\"added\"}";
    let room = size.checked_sub(line.len() + END.len()).expect("a line is longer than that");
    let end = line.len() + room;
    while line.len() < end {
        let number = random.next();
        let _ = write!(line, "{} {:04x} ", WORDS[(number % 16) as usize], number >> 16 & 0xffff);
    }
    line.truncate(end);
    line.push_str(END);
    line
}

/// The columns of the line number `n` of that size, as JSON.
pub(crate) fn columns(n: u64, size: usize) -> String {
    let line = line(n, size);
    let columns = line.split_once("\"columns\":").expect("a line has columns").1;
    columns.split_once(",\"action\"").expect("and an action").0.to_owned()
}

/// xorshift: no two lines are the same, and each run has the same ones.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_of_the_wanted_size() {
        for (n, size) in [(0, 200), (999_999, 200), (1, 500), (2, 2000), (3, 50_000)] {
            let line = line(n, size);
            assert_eq!(line.len(), size);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["counter"], n);
            assert_eq!(line.matches(BEGINNING).count(), 1);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&columns(n, size)).unwrap(), parsed["columns"]);
        }
    }
}
