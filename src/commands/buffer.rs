//! `osquery-remote-tls buffer`: the lines that wait for the server. They are read as they lie on the disk; only the running
//! extension, which reads them too, throws any away.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::json;

use super::table::{self, Align};
use super::{ask_for_count, fail, know_secrets, manager, new_file, print, subject, unmasked, unreadable};
use crate::cli::arguments::{BufferCommand, DiscardFlags, ExportFlags, ListFlags, ShowFlags, Stream};
use crate::doctor::subject::Subject;
use crate::journal::inspect::{self, Look};
use crate::line_count::LineCounter;
use crate::shown::shown;
use crate::words::counted;

/// The first characters of a record, which are shown, and the bytes of it that are read for that.
const CHARACTERS: usize = 1000;
const BYTES: u64 = 1 << 20;

/// Does what is asked for.
#[must_use]
pub fn run(command: &BufferCommand) -> ExitCode {
    match command {
        BufferCommand::List(flags) => list(flags),
        BufferCommand::Show(flags) => show(flags),
        BufferCommand::Export(flags) => export(flags),
        BufferCommand::Discard(flags) => discard(flags),
    }
}

fn list(flags: &ListFlags) -> ExitCode {
    let subject = subject(&flags.target);
    let looks: Vec<(Stream, Look)> = Stream::value_variants()
        .iter()
        .map(|&stream| (stream, inspect::look::<LineCounter>(&place(&subject, stream))))
        .collect();
    let directory = subject.settings.buffer_path.display().to_string();
    if flags.json {
        let row = |(stream, look): &(Stream, Look)| {
            json!({
                "stream": name(*stream), "waiting_lines": look.waiting.lines, "waiting_bytes": look.waiting.bytes,
                "files": look.segments, "file_bytes": look.file_bytes, "damaged": look.damaged, "problems": look.problems,
            })
        };
        return print(&format!("{:#}\n", looks.iter().map(row).collect::<serde_json::Value>()));
    }
    let heads = [
        ("journal", Align::Left),
        ("lines that wait", Align::Right),
        ("bytes", Align::Right),
        ("files", Align::Right),
        ("bytes of files", Align::Right),
    ];
    let row = |(stream, look): &(Stream, Look)| {
        let [lines, bytes, file_bytes] =
            [look.waiting.lines, look.waiting.bytes, look.file_bytes].map(|n| n.to_string());
        [name(*stream), lines, bytes, look.segments.to_string(), file_bytes]
    };
    let rows: Vec<[String; 5]> = looks.iter().map(row).collect();
    let problems: String =
        looks.iter().flat_map(|(_, look)| &look.problems).map(|problem| format!("{problem}\n")).collect();
    print(&format!("on the disk, in {directory}:\n{}{problems}", table::text(heads, &rows)))
}

fn show(flags: &ShowFlags) -> ExitCode {
    let subject = subject(&flags.target);
    if let Err(reason) = know_secrets(&subject) {
        return fail(unmasked(&reason));
    }
    let mut out = io::stdout().lock();
    let mut left = flags.lines;
    let mut take = |waiting: &mut dyn Read| {
        let mut waiting = BufReader::new(waiting);
        let mut record = Vec::new();
        while left > 0 && waiting.by_ref().take(BYTES).read_until(b'\n', &mut record)? > 0 {
            writeln!(out, "{}", shown(String::from_utf8_lossy(&record).trim_end(), CHARACTERS))?;
            if !record.ends_with(b"\n") {
                waiting.skip_until(b'\n')?;
            }
            record.clear();
            left -= 1;
        }
        Ok(left > 0)
    };
    match inspect::waiting::<LineCounter>(&place(&subject, flags.stream), &mut take) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(unreadable(place(&subject, flags.stream).display(), &error)),
    }
}

fn export(flags: &ExportFlags) -> ExitCode {
    let subject = subject(&flags.target);
    let mut out: Box<dyn Write> = match &flags.file {
        Some(path) => match new_file(path) {
            Ok(file) => Box::new(file),
            Err(error) => return fail(error),
        },
        // They could move its cursor, and worse.
        None if io::stdout().is_terminal() => {
            return fail("records are not written to a terminal as they are: name a file, or see `buffer show`");
        }
        None => Box::new(io::stdout().lock()),
    };
    let mut bytes = 0;
    let mut take = |waiting: &mut dyn Read| {
        bytes += io::copy(waiting, &mut out)?;
        Ok(true)
    };
    let exported = inspect::waiting::<LineCounter>(&place(&subject, flags.stream), &mut take);
    match exported.and_then(|()| out.flush()) {
        Ok(()) => match &flags.file {
            Some(path) => print(&format!("{} written to {}\n", counted(bytes, "byte"), path.display())),
            None => ExitCode::SUCCESS,
        },
        Err(error) => fail(unreadable(place(&subject, flags.stream).display(), &error)),
    }
}

fn discard(flags: &DiscardFlags) -> ExitCode {
    let subject = subject(&flags.target);
    let request = [("action", "discard"), ("stream", &*name(flags.stream))];
    match manager(&subject).and_then(|manager| ask_for_count(manager, &request)) {
        Ok(lines) => print(&format!("{} discarded\n", counted(lines, "line"))),
        Err(error) => fail(error),
    }
}

fn name(stream: Stream) -> String {
    stream.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn place(subject: &Subject, stream: Stream) -> PathBuf {
    subject.settings.buffer_path.join(name(stream))
}
