//! The load's lines: each has its number in front, and is made of words that compress as osquery's lines do.

use fastrand::Rng;
use serde_json::{Value, json};

use super::ledger::Quality;

/// `logger_tls_max_linesize` of the soak, in bytes.
pub(super) const MAX_LINE_BYTES: usize = 64 << 10;

/// The sizes of lines, in bytes, but for those that are too large.
const SIZES: (f64, f64) = (200.0, 50_000.0);

/// What lines begin with.
const START: &str = "{\"n\":";

const WORDS: [&str; 8] =
    ["/usr/lib/systemd", "LISTEN", "0.0.0.0", "root", "\u{fc}ber", "sha256", "launchd", "4294967295"];

/// A kind of result line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A row's difference, as JSON.
    Event,
    /// JSON, but for bytes that are no UTF-8: they are repaired, and the server gets the line.
    InvalidUtf8,
    /// No JSON: set aside.
    NoJson,
    /// More than [`MAX_LINE_BYTES`]: set aside.
    TooLarge,
}

impl Kind {
    /// Most lines are sound.
    pub(super) fn draw(random: &mut Rng) -> Kind {
        match random.u32(..200) {
            0 => Kind::TooLarge,
            1..=3 => Kind::NoJson,
            4..=9 => Kind::InvalidUtf8,
            _ => Kind::Event,
        }
    }

    pub(super) fn quality(self) -> Quality {
        match self {
            Kind::Event | Kind::InvalidUtf8 => Quality::Sound,
            Kind::NoJson | Kind::TooLarge => Quality::Faulty,
        }
    }
}

/// A result line.
pub(super) fn result(kind: Kind, n: u64, random: &mut Rng) -> Vec<u8> {
    let size = if kind == Kind::TooLarge { MAX_LINE_BYTES + 4096 } else { size(random) };
    let mut line = format!("{START}{n},\"name\":\"soak\",\"columns\":{{\"text\":\"").into_bytes();
    if kind == Kind::InvalidUtf8 {
        line.extend([0xff, 0xc3, b' ']);
    }
    while line.len() < size {
        line.extend(WORDS[random.usize(..WORDS.len())].bytes());
        line.push(b' ');
    }
    line.extend(if kind == Kind::NoJson { &b"\"}"[..] } else { &b"\"}}"[..] });
    line
}

/// A `status` call's parameter with these lines.
pub(super) fn statuses(numbers: &[u64]) -> String {
    let one = |n: &u64| {
        let message = status_message(*n);
        json!({"s": n % 3, "f": "soak.cpp", "i": 1, "m": message, "h": "soak", "c": "Mon Nov 23 04:12:05 2026 UTC",
            "u": 1_795_407_125})
    };
    numbers.iter().map(one).collect::<Value>().to_string()
}

/// The results of one distributed query.
pub(super) fn written(n: u64) -> String {
    let id = status_message(n);
    json!({"queries": {&id: [{"text": "x"}]}, "statuses": {&id: 0}, "messages": {&id: ""}, "stats": {}}).to_string()
}

/// The number that a status line's message or the id of a distributed query has.
pub(super) fn number_of_message(message: &str) -> Option<u64> {
    message.strip_prefix(MESSAGE)?.parse().ok()
}

/// The number of a result line, of which the beginning is enough.
pub(super) fn number_of_line(line: &str) -> Option<u64> {
    let rest = line.strip_prefix(START)?;
    rest.split_once(',')?.0.parse().ok()
}

/// What a status line of the extension's says of lines that it dropped.
pub(crate) fn loss(status: &Value) -> Option<&str> {
    let message = status["message"].as_str().filter(|message| message.contains("dropped"))?;
    (status["filename"] == "remote_tls").then_some(message)
}

const MESSAGE: &str = "soak ";

fn status_message(n: u64) -> String {
    format!("{MESSAGE}{n}")
}

/// Small lines are as frequent as large ones, by orders of magnitude.
fn size(random: &mut Rng) -> usize {
    let (least, most) = SIZES;
    (least * (most / least).powf(random.f64())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_what_it_is_called_and_has_its_number() {
        let mut random = Rng::with_seed(1);
        for n in 0..200 {
            let line = |kind, random: &mut Rng| result(kind, n, random);
            let event = line(Kind::Event, &mut random);
            assert!((200..51_000).contains(&event.len()), "{}", event.len());
            assert_eq!(serde_json::from_slice::<Value>(&event).unwrap()["n"], n);
            let invalid = line(Kind::InvalidUtf8, &mut random);
            assert!(std::str::from_utf8(&invalid).is_err());
            let repaired = String::from_utf8_lossy(&invalid).into_owned();
            assert_eq!(serde_json::from_str::<Value>(&repaired).unwrap()["n"], n);
            let broken = String::from_utf8(line(Kind::NoJson, &mut random)).unwrap();
            assert!(serde_json::from_str::<Value>(&broken).is_err());
            let large = String::from_utf8(line(Kind::TooLarge, &mut random)).unwrap();
            assert!(large.len() > MAX_LINE_BYTES && serde_json::from_str::<Value>(&large).is_ok());
            assert_eq!([&broken[..40], &large[..40]].map(number_of_line), [Some(n); 2]);
        }
        assert_eq!(number_of_line("{\"name\":1,"), None);
    }

    #[test]
    fn all_kinds_are_drawn() {
        let mut random = Rng::with_seed(1);
        let drawn: Vec<Kind> = (0..5000).map(|_| Kind::draw(&mut random)).collect();
        for kind in [Kind::Event, Kind::InvalidUtf8, Kind::NoJson, Kind::TooLarge] {
            assert!(drawn.contains(&kind), "{kind:?}");
        }
    }

    #[test]
    fn statuses_and_distributed_results_have_their_numbers() {
        let lines: Value = serde_json::from_str(&statuses(&[5, 6])).unwrap();
        assert_eq!(lines[1]["m"].as_str().and_then(number_of_message), Some(6));
        let body: Value = serde_json::from_str(&written(7)).unwrap();
        let ids: Vec<&String> = body["queries"].as_object().unwrap().keys().collect();
        assert_eq!(ids.iter().map(|id| number_of_message(id)).collect::<Vec<_>>(), [Some(7)]);
        assert_eq!(number_of_message("1 line of the results journal dropped so far"), None);
    }
}
