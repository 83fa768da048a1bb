//! The journal does what a queue in memory does, whatever happens in whichever order: appends of all kinds, peeks,
//! acknowledgements down to single lines, limits, reopenings, deaths, damage, and a disk that goes away and comes back.
//!
//! `MODEL_SEED` and `MODEL_STEPS` make it another run, or a long one.

use std::collections::VecDeque;

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    text: String,
    lines: u64,
}

/// What should wait, in order.
#[derive(Default)]
struct Model {
    disk: VecDeque<Kept>,
    /// What the disk has refused.
    memory: VecDeque<Kept>,
    /// Lines of the oldest record that are done with, where it waits on disk and in memory.
    disk_part: u64,
    memory_part: u64,
    /// What was done with and may come again, oldest first.
    done: Vec<Kept>,
    made: u64,
}

/// The journal under test, with what it is compared to.
struct Run {
    rig: Rig,
    model: Model,
    random: Random,
    /// Whether something else stands where the buffers' directory was.
    is_away: bool,
    /// The step, for messages.
    what: String,
}

const TUNING: Tuning = Tuning { segment_bytes: 2_000, retry_interval: Duration::ZERO };

#[test]
fn the_journal_does_what_a_queue_in_memory_does() {
    // In a process of its own: one that another test starts meanwhile has copies of our locks until it runs its own program.
    if std::env::var_os("MODEL_ALONE").is_none() {
        let test = std::thread::current().name().unwrap().to_owned();
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", &test]).env("MODEL_ALONE", "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let number = |name: &str, otherwise: u64| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let seed = number("MODEL_SEED", 0x9e37_79b9_7f4a_7c15);
    let mut run = Run {
        rig: Rig::at(tempfile::tempdir().unwrap(), TUNING),
        model: Model::default(),
        random: Random(seed),
        is_away: false,
        what: String::new(),
    };
    for step in 0..number("MODEL_STEPS", 5_000) {
        run.what = format!("MODEL_SEED={seed}, step {step}");
        run.step();
    }
    run.what = format!("MODEL_SEED={seed}, the end");
    run.come_back();
    run.rig.writer.retry();
    run.agree_on_memory();
    while run.take_some(ALL, Until::End) {}
    assert!(run.model.disk.is_empty() && run.model.memory.is_empty(), "{}", run.what);
    assert!(run.rig.reader.is_empty(), "{}", run.what);
}

/// How much of what was peeked is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// All of it.
    End,
    /// This many hundredths of it; of a record with many lines perhaps a part.
    Percent(u64),
}

impl Run {
    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.append(),
            30..38 => self.append_all(),
            38..45 => self.append_large(),
            45..80 => {
                let max_bytes = self.random.below(2_500) as usize;
                let until = if self.random.below(3) == 0 { Until::End } else { Until::Percent(self.random.below(101)) };
                self.take_some(max_bytes, until);
            }
            80..84 => self.keep_within(),
            84..88 => self.reopen(),
            88..91 => self.die(),
            91..93 => self.damage_the_cursor(),
            93..95 => self.keep_backstop(),
            95..97 if self.is_away => self.come_back(),
            95..96 => self.go_away(),
            97..98 => self.rig.writer.sync(),
            _ => {
                self.rig.writer.retry();
            }
        }
        self.agree_on_memory();
        self.compare_numbers();
    }

    fn new_record(&mut self) -> Kept {
        self.model.made += 1;
        let n = self.model.made;
        let (rows, fill) = (self.random.below(12), self.random.below(300) as usize);
        match self.random.below(20) {
            0..4 => {
                let rows: Vec<String> = (0..rows).map(|row| format!("{{\"r\":\"{row}\"}}")).collect();
                let text = format!("{{\"diffResults\":{{\"removed\":[{}]}},\"n\":{n}}}", rows.join(","));
                Kept { text, lines: (rows.len() as u64).max(1) }
            }
            4 => Kept { text: format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(10 * fill)), lines: 1 },
            _ => Kept { text: format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(fill)), lines: 1 },
        }
    }

    fn append(&mut self) {
        let record = self.new_record();
        self.rig.writer.append(record.text.as_bytes());
        self.model.memory.push_back(record);
    }

    fn append_all(&mut self) {
        let count = self.random.below(6);
        let records: Vec<Kept> = (0..count).map(|_| self.new_record()).collect();
        self.rig.writer.append_all(records.iter().map(|record| record.text.as_bytes()));
        self.model.memory.extend(records);
    }

    fn append_large(&mut self) {
        let record = self.new_record();
        let dropped = self.rig.writer.counts().dropped;
        let writer = Arc::clone(&self.rig.writer);
        let mut incoming = Incoming::begin(&writer);
        let piece = 1 + self.random.below(1_000) as usize;
        record.text.as_bytes().chunks(piece).for_each(|piece| incoming.write(piece));
        if self.random.below(5) == 0 {
            // Another one comes first.
            self.append();
        }
        if self.random.below(10) == 0 {
            return;
        }
        incoming.commit();
        self.agree_on_memory();
        match self.rig.writer.counts().dropped - dropped {
            0 => self.model.disk.push_back(record),
            lost => assert!(self.is_away && lost == record.lines, "{}", self.what),
        }
    }

    /// What the writer no longer has in memory is on disk.
    fn agree_on_memory(&mut self) {
        let held = held(&self.rig.writer);
        while self.model.memory.iter().map(|record| record.lines).sum::<u64>() > held.lines {
            let record = self.model.memory.pop_front().unwrap();
            self.model.memory_part = 0;
            self.model.disk.push_back(record);
        }
        let bytes: usize = self.model.memory.iter().map(|record| record.text.len() + 1).sum();
        let lines: u64 = self.model.memory.iter().map(|record| record.lines).sum();
        assert_eq!(held, Amount { lines, bytes: bytes as u64 }, "{}", self.what);
    }

    fn disk_lines(&self) -> u64 {
        self.model.disk.iter().map(|record| record.lines).sum::<u64>() - self.model.disk_part
    }

    fn compare_numbers(&mut self) {
        if self.is_away || self.random.below(4) > 0 {
            return;
        }
        let waiting = self.disk_lines() + held(&self.rig.writer).lines;
        assert_eq!(self.rig.reader.waiting_lines(), waiting, "{}", self.what);
        assert_eq!(self.rig.reader.is_empty(), waiting == 0, "{}", self.what);
        assert_eq!(self.rig.reader.status().waiting.lines, waiting, "{}", self.what);
    }

    /// Peeks, compares, and acknowledges some of it: whether there was something.
    fn take_some(&mut self, max_bytes: usize, until: Until) -> bool {
        let peeked = self.rig.reader.peek(max_bytes);
        self.agree_on_memory();
        if self.is_away && self.model.memory.is_empty() {
            assert!(peeked.is_err(), "{}: {peeked:?}", self.what);
            return false;
        }
        let peeked = peeked.unwrap();
        let from_memory = self.is_away || self.model.disk.is_empty();
        let texts = texts(&peeked);
        let Some(ends) = self.compare(&peeked, &texts, max_bytes, from_memory) else { return false };
        if self.random.below(6) == 0 {
            // Limits may come in between, and take what is on its way.
            self.keep_within();
        }
        let (until, records, part) = match until {
            Until::End => (*ends.last().unwrap(), ends.len(), 0),
            Until::Percent(percent) => {
                let records = ends.len() * percent as usize / 100;
                let start = if records == 0 { start(&peeked) } else { ends[records - 1] };
                let left = ends.get(records).map_or(0, |end| end.line - start.line);
                let part = if left > 1 { self.random.below(left) } else { 0 };
                (start.after_lines(part), records, part)
            }
        };
        let before = self.rig.reader.counts().delivered;
        self.rig.reader.acknowledge(until);
        let delivered = self.rig.reader.counts().delivered - before;
        let expected = self.model.take(from_memory, &texts, records, until.lines_done, part);
        assert_eq!(delivered, expected, "{}", self.what);
        true
    }

    /// Compares what was peeked to what should wait: where its records end.
    fn compare(
        &self,
        peeked: &Waiting,
        texts: &[String],
        max_bytes: usize,
        from_memory: bool,
    ) -> Option<Vec<Position>> {
        let (queue, part) = if from_memory {
            (&self.model.memory, self.model.memory_part)
        } else {
            (&self.model.disk, self.model.disk_part)
        };
        let expected: Vec<&str> = queue.iter().take(texts.len()).map(|record| record.text.as_str()).collect();
        assert_eq!(texts, expected, "{}", self.what);
        assert_eq!(texts.is_empty(), queue.is_empty(), "{}", self.what);
        let bytes: usize = texts.iter().map(|text| text.len() + 1).sum();
        let (ends, lines) = match peeked {
            Waiting::Nothing => return None,
            Waiting::Records(chunk) => {
                assert!(bytes <= max_bytes || from_memory && texts.len() == 1, "{}", self.what);
                assert_eq!(chunk.start().is_in_memory(), from_memory, "{}", self.what);
                (ends(chunk), chunk.records().map(|record| record.lines()).collect::<Vec<_>>())
            }
            Waiting::Large(record) => {
                assert!(bytes > max_bytes && !from_memory, "{}", self.what);
                (vec![record.end()], vec![record.lines()])
            }
        };
        assert_eq!(start(peeked).lines_done, part, "{}", self.what);
        let mut left: Vec<u64> = queue.iter().take(texts.len()).map(|record| record.lines).collect();
        left[0] -= part;
        assert_eq!(lines, left, "{}", self.what);
        Some(ends)
    }

    fn keep_within(&mut self) {
        // What is missing is counted now.
        self.rig.reader.waiting_lines();
        let lines = self.disk_lines();
        let most_lines = lines.saturating_sub(self.random.below(10));
        let before = self.rig.reader.counts().dropped;
        let told = self.rig.reader.keep_within(&most(most_lines));
        let dropped = self.rig.reader.counts().dropped - before;
        assert_eq!(told, dropped, "{}", self.what);
        // What waits in memory isn't on disk, where the limit counts.
        self.agree_on_memory();
        let expected = if self.is_away { 0 } else { lines.saturating_sub(most_lines) };
        assert_eq!(dropped, expected, "{}", self.what);
        self.model.drop_lines(dropped);
    }

    fn reopen(&mut self) {
        if self.random.below(2) == 0 {
            self.rig.reader.close();
            self.rig.reader = reader(self.rig.root.path(), &self.rig.writer);
        } else {
            let before = self.rig.writer.counts().dropped;
            self.rig.writer.close();
            let lost = self.rig.writer.counts().dropped - before;
            let held: u64 = self.model.memory.iter().map(|record| record.lines).sum();
            assert_eq!(lost, if self.is_away { held } else { 0 }, "{}", self.what);
            if self.is_away {
                self.lose_memory();
            }
            self.agree_on_memory();
            self.new_writer();
        }
    }

    /// Both die; perhaps in the middle of a write.
    fn die(&mut self) {
        self.agree_on_memory();
        self.lose_memory();
        self.rig.reader = reader(self.rig.root.path(), &self.rig.writer);
        self.new_writer();
        if !self.is_away
            && self.random.below(2) == 0
            && let Some(&newest) = self.rig.segments().last()
        {
            let half = "\0".repeat(1 + self.random.below(100) as usize);
            self.rig.scribble(newest, half.as_bytes());
            fs::write(self.rig.journal().join("incoming-3"), "half a large record").unwrap();
        }
    }

    fn lose_memory(&mut self) {
        self.model.memory.clear();
        self.model.memory_part = 0;
    }

    fn new_writer(&mut self) {
        let writer = writer(self.rig.root.path(), TUNING);
        self.rig.reader.close();
        self.rig.reader = reader(self.rig.root.path(), &writer);
        self.rig.writer = writer;
    }

    /// Lines may come twice then, and none is missing.
    fn damage_the_cursor(&mut self) {
        if self.is_away || !self.rig.journal().exists() {
            return;
        }
        self.rig.reader.close();
        let text = match self.random.below(3) {
            0 => "nonsense".to_owned(),
            1 => format!("{:020} {:020} {:020} {:020}\n", 0, 1, 0, 1),
            _ => String::new(),
        };
        fs::write(self.rig.journal().join("cursor"), text).unwrap();
        self.rig.reader = reader(self.rig.root.path(), &self.rig.writer);
        let peeked = self.rig.reader.peek(0).unwrap();
        self.agree_on_memory();
        if let (Waiting::Large(_), Some(first)) = (&peeked, texts(&peeked).first()) {
            self.model.go_back_to(first, &self.what);
        }
        assert!(start_of(&peeked).is_none_or(|start| start.lines_done == 0), "{}", self.what);
    }

    fn keep_backstop(&mut self) {
        if self.is_away {
            return;
        }
        let Some(end) = self.rig.writer.end() else { return };
        self.rig.writer.keep_backstop(&Limits { max_bytes: 3_000, ..Limits::NONE });
        let before = self.rig.reader.counts().dropped;
        let lines = self.disk_lines();
        self.rig.reader.waiting_lines();
        let dropped = self.rig.reader.counts().dropped - before;
        let oldest = self.rig.segments().first().copied().unwrap_or_default();
        assert_eq!(dropped, lines.saturating_sub(end.line - oldest), "{}", self.what);
        self.model.drop_lines(dropped);
    }

    fn go_away(&mut self) {
        if self.rig.buffers().exists() {
            fs::rename(self.rig.buffers(), self.rig.root.path().join("hidden")).unwrap();
        }
        fs::write(self.rig.buffers(), "in the way").unwrap();
        self.is_away = true;
    }

    fn come_back(&mut self) {
        if std::mem::take(&mut self.is_away) {
            fs::remove_file(self.rig.buffers()).unwrap();
            let hidden = self.rig.root.path().join("hidden");
            if hidden.exists() {
                fs::rename(hidden, self.rig.buffers()).unwrap();
            }
        }
    }
}

impl Model {
    /// The lines of a queue's front that an acknowledgement takes: those of so many of the records that were peeked, and a
    /// part of the next. Some of them may have been dropped meanwhile.
    fn take(&mut self, from_memory: bool, texts: &[String], records: usize, until_part: u64, part: u64) -> u64 {
        let (queue, done_part) =
            if from_memory { (&mut self.memory, &mut self.memory_part) } else { (&mut self.disk, &mut self.disk_part) };
        let mut taken = 0;
        for text in &texts[..records] {
            if queue.front().is_some_and(|record| record.text == *text) {
                let record = queue.pop_front().unwrap();
                taken += record.lines - std::mem::take(done_part);
                if !from_memory {
                    self.done.push(record);
                }
            }
        }
        if part > 0 && queue.front().is_some_and(|record| record.text == texts[records]) && until_part > *done_part {
            taken += until_part - *done_part;
            *done_part = until_part;
        }
        taken
    }

    fn drop_lines(&mut self, lines: u64) {
        let mut left = lines;
        while left > 0 {
            let rest = self.disk[0].lines - self.disk_part;
            if left < rest {
                self.disk_part += left;
                return;
            }
            left -= rest;
            self.disk_part = 0;
            self.done.extend(self.disk.pop_front());
        }
    }

    /// The reader begins again with this record, which it has had before or is at.
    fn go_back_to(&mut self, text: &str, what: &str) {
        self.disk_part = 0;
        while self.disk.front().is_none_or(|record| record.text != text) {
            let record = self.done.pop();
            self.disk.push_front(record.unwrap_or_else(|| panic!("{what}: {text} was never there")));
        }
    }
}

fn start_of(waiting: &Waiting) -> Option<Position> {
    match waiting {
        Waiting::Nothing => None,
        Waiting::Records(chunk) => Some(chunk.start()),
        Waiting::Large(record) => Some(record.start()),
    }
}

fn start(waiting: &Waiting) -> Position {
    start_of(waiting).unwrap()
}

/// xorshift64: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
