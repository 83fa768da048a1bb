//! `osquery-remote-tls flare`: what those who help want to see, in one file. Everything in it is masked as anywhere, and
//! nothing in it is a log line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::status::{self, host};
use super::table::{self, Align};
use super::{doctor_flags, fail, know_secrets, new_file, note, print, subject};
use crate::chain::chain;
use crate::cli::arguments::{FlareFlags, Target};
use crate::clock::unix_time;
use crate::doctor::subject::Subject;
use crate::doctor::{self, Form};
use crate::files;
use crate::platform::Places;
use crate::plugins::tables::tables;
use crate::secret::{MASK, redact};
use crate::settings::{REMOTE_PREFIX, without_password};
use crate::shown::one_line;

/// The bundle has this many bytes of the end of the log, at most.
const LOG_BYTES: u64 = 512 << 10;

/// Files of the buffers that are named, at most.
const MOST_FILES: usize = 1000;

/// Parts of the names of flags whose values are secret: osquery's own, and what may come.
const SECRET_NAMES: [&str; 6] = ["secret", "password", "token", "access_key", "api_key", "credential"];

/// A file of the bundle.
struct Part {
    name: &'static str,
    about: &'static str,
    text: String,
}

/// Writes the bundle: an archive of state, flags and log, with secrets masked.
#[must_use]
pub fn run(flags: &FlareFlags) -> ExitCode {
    let name = format!("osquery-remote-tls-flare-{}-{}", plain(&host()), unix_time());
    let path = flags.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    // Before the doctor takes its time.
    let file = match new_file(&path) {
        Ok(file) => file,
        Err(error) => return fail(error),
    };
    note("the doctor looks at this host, which takes up to 20 s");
    let parts = parts(&flags.target);
    match write(file, &name, &parts) {
        Ok(bytes) => print(&format!("{}\n{}: {bytes} bytes, for its owner alone\n", contents(&parts), path.display())),
        Err(error) => {
            // What is there is no bundle.
            let _ = fs::remove_file(&path);
            fail(format!("{} can't be written: {error}", path.display()))
        }
    }
}

/// What is in it, for who is to pass it on.
fn contents(parts: &[Part]) -> String {
    let heads = [("file", Align::Left), ("bytes", Align::Right), ("what it is", Align::Left)];
    let row = |part: &Part| [part.name.to_owned(), part.text.len().to_string(), part.about.to_owned()];
    let rows: Vec<[String; 3]> = parts.iter().map(row).collect();
    format!(
        "{}secrets and node keys are masked, and no log line of osqueryd's is in it; read it before you pass it on",
        table::text(heads, &rows)
    )
}

fn parts(target: &Target) -> Vec<Part> {
    let subject = subject(target);
    // What can't be known is masked already where it could stand: in the extension's own words.
    let _ = know_secrets(&subject);
    let mut report = Vec::new();
    if let Err(error) = doctor::examine(&doctor_flags(target), Form::Plain, &mut report) {
        report.extend_from_slice(format!("{error}\n").as_bytes());
    }
    let part = |name, about, text: String| Part { name, about, text: masked(&text) };
    vec![
        part("doctor.txt", "what the doctor finds", String::from_utf8_lossy(&report).into_owned()),
        part("status.txt", "how the extension fares", status::as_text(&subject)),
        part("status.json", "the same for a program", format!("{:#}\n", status::as_json(&subject))),
        part("tables.json", "the extension's tables, without the lines that were set aside", of_tables(&subject)),
        part("flags.txt", "osqueryd's flags and ours", of_flags(&subject)),
        part("versions.txt", "of the extension, osquery and the system", of_versions(&subject)),
        part("log.txt", "the end of the extension's log, where it has a file", of_log(&subject)),
        part("buffers.txt", "names and sizes of the buffers' files", of_buffers(&subject.settings.buffer_path)),
    ]
}

/// Masked at the exit, as everywhere, and its lines as a terminal may show them.
fn masked(text: &str) -> String {
    redact(text).lines().map(|line| format!("{}\n", one_line(line))).collect()
}

fn of_tables(subject: &Subject) -> String {
    let rows = |name: &str| match &subject.running {
        Ok(running) => match running.manager.table(name) {
            Ok(mut rows) => {
                // What stands in lines is the owner's business.
                rows.iter_mut().for_each(|row| drop(row.remove("beginning")));
                json!(rows)
            }
            Err(error) => json!(chain(&error).to_string()),
        },
        Err(error) => json!(chain(error).to_string()),
    };
    let all: serde_json::Map<String, Value> = tables().map(|table| (table.name.to_owned(), rows(table.name))).collect();
    format!("{:#}\n", Value::Object(all))
}

fn of_flags(subject: &Subject) -> String {
    let running = match &subject.running {
        Ok(running) => {
            let flag = |(name, value): (&String, &String)| format!("--{name}={}\n", value_of(name, value));
            running.options.iter().map(flag).collect()
        }
        Err(error) => format!("{}\n", chain(error)),
    };
    let ours: String = crate::settings::own::FLAGS
        .iter()
        .filter_map(|flag| Some(format!("--{}={}\n", flag.name, subject.own.get(flag)?.text)))
        .collect();
    format!(
        "osqueryd's, as they are now:\n{running}\nours, in {}:\n{ours}\nosqueryd's flag file is {}\n",
        subject.own_path.display(),
        subject.flagfile_path.display()
    )
}

/// A flag's value, masked where the flag holds a secret.
fn value_of(name: &str, value: &str) -> String {
    // The place of a secret, and how it is sent, are no secrets.
    let is_place = ["_path", "_env", "_always"].iter().any(|end| name.ends_with(end));
    let is_secret = !is_place && SECRET_NAMES.iter().any(|part| name.contains(part));
    let is_anything = name.starts_with("custom_") && !name.starts_with(REMOTE_PREFIX);
    if !value.is_empty() && (is_secret || is_anything) { MASK.to_owned() } else { without_password(value) }
}

fn of_versions(subject: &Subject) -> String {
    let system = rustix::system::uname();
    let running = subject.running.as_ref().ok();
    let or_none = |version: Option<&str>| version.unwrap_or("does not answer").to_owned();
    let release = files::read(Path::new(Places::HERE.release), 16 << 10).unwrap_or_default();
    format!(
        "command     {}\nextension   {}\nosquery     {}\nsystem      {} {} {}\n{}",
        env!("CARGO_PKG_VERSION"),
        or_none(running.and_then(|running| running.extension_version())),
        or_none(running.and_then(|running| running.version.as_deref())),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
        String::from_utf8_lossy(&release),
    )
}

fn of_log(subject: &Subject) -> String {
    let Some(path) = &subject.settings.log.file else {
        return "log_file is not set: the log is osqueryd's stderr (journalctl -u osqueryd), or the system's log\n"
            .to_owned();
    };
    end_of(path).unwrap_or_else(|error| format!("{} can't be read: {error}\n", path.display()))
}

/// The last whole lines.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = files::open_ours(path, OpenOptions::new().read(true))?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LOG_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // A half line at its beginning could have half a secret.
    Ok(if start > 0 { text.split_once('\n').map_or("", |(_, rest)| rest).to_owned() } else { text.into_owned() })
}

fn of_buffers(directory: &Path) -> String {
    let mut text = format!("in {}: mode, user, bytes, Unix time of the last change, name\n", directory.display());
    let mut names = Vec::new();
    list(directory, Path::new(""), &mut names);
    for name in names.iter().take(MOST_FILES) {
        match fs::symlink_metadata(directory.join(name)) {
            Ok(file) => {
                let (mode, user, bytes) = (file.mode() & 0o7777, file.uid(), file.len());
                text.push_str(&format!("{mode:04o} {user} {bytes:>12} {} {}\n", file.mtime(), name.display()));
            }
            Err(error) => text.push_str(&format!("{}: {error}\n", name.display())),
        }
    }
    if names.is_empty() {
        text.push_str("none, or they can't be read\n");
    }
    text
}

/// The names in a directory, and in those of it.
fn list(root: &Path, below: &Path, names: &mut Vec<PathBuf>) {
    let mut found: Vec<_> = fs::read_dir(root.join(below)).into_iter().flatten().flatten().take(MOST_FILES).collect();
    found.sort_by_key(fs::DirEntry::file_name);
    for entry in found {
        let name = below.join(entry.file_name());
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        names.push(name.clone());
        if is_directory && below.as_os_str().is_empty() {
            list(root, &name, names);
        }
    }
}

/// A host's name as a part of a file's.
fn plain(host: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-.".contains(character);
    host.chars().map(|character| if is_plain(character) { character } else { '-' }).take(64).collect()
}

fn write(file: File, name: &str, parts: &[Part]) -> io::Result<u64> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for part in parts {
        let mut header = tar::Header::new_ustar();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(unix_time()).unwrap_or(0));
        archive.append_data(&mut header, format!("{name}/{}", part.name), part.text.as_bytes())?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_flags_with_secrets_are_masked() {
        for (name, value, shown) in [
            ("enroll_secret_path", "/etc/osquery/secret", "/etc/osquery/secret"),
            ("tls_secret_always", "true", "true"),
            ("aws_secret_access_key", "AKIA", MASK),
            ("aws_access_key_id", "", ""),
            ("custom_anything", "word", MASK),
            ("custom_remote_tls_request_timeout", "60", "60"),
            ("proxy_hostname", "u:pw@proxy:3128", "<hidden>@proxy:3128"),
        ] {
            assert_eq!(value_of(name, value), shown, "{name}");
        }
    }
}
