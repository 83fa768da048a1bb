//! The list of extensions that osqueryd starts.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::extension_file::{self, DEFAULT_AUTOLOAD, USUAL_PLACE, osqueryd_user, writers};
use super::subject::Subject;
use super::{Check, Report};
use crate::files;

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    if subject.knows_no_flag() {
        report.skip(Check::AutoloadFile, "no flag is known");
        return report.skip(Check::ExtensionFile, "no flag is known");
    }
    let list = PathBuf::from(subject.text("extensions_autoload", DEFAULT_AUTOLOAD));
    match ours(&list, subject, report) {
        Some(path) if !path.is_absolute() => report.skip(Check::ExtensionFile, "it depends on where osqueryd starts"),
        Some(path) => extension_file::check(&path, subject, report),
        None => report.skip(Check::ExtensionFile, "its path is not known"),
    }
}

/// The extension's path in the list.
fn ours(list: &Path, subject: &Subject, report: &mut Report<'_>) -> Option<PathBuf> {
    const CHECK: Check = Check::AutoloadFile;
    let shown = list.display();
    let own = std::env::current_exe().ok();
    let installed = own.as_deref().filter(|own| own.extension().is_some_and(|ending| ending == "ext"));
    let example = installed.unwrap_or(Path::new(USUAL_PLACE)).display();
    let text = match fs::read(list) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => format!("make it, with one line: {example}"),
                _ => "run the doctor as root".to_owned(),
            };
            report.fail(CHECK, format!("{shown} can't be read: {error}"), remedy);
            return None;
        }
    };
    let paths = paths(&text);
    let mut ours = paths.iter().filter(|path| is_ours(path, own.as_deref()));
    let Some(path) = ours.next() else {
        report.fail(CHECK, format!("{shown} does not name the extension"), format!("add the line {example}"));
        return None;
    };
    if let Some(other) = ours.next() {
        report.fail(
            CHECK,
            format!(
                "{shown} names the extension twice, {} and {}: the second one can't register",
                path.display(),
                other.display()
            ),
            "remove one of the lines",
        );
    }
    if !path.is_absolute() {
        report.warn(
            CHECK,
            format!("{shown}: {} is relative to wherever osqueryd starts", path.display()),
            "write the whole path",
        );
    }
    writable_by_others(list, subject, report);
    if report.is_clean(CHECK) {
        report.ok(CHECK, format!("{shown} names {}", path.display()));
    }
    Some(path.clone())
}

/// Who can add a line to the file can have root run a program.
fn writable_by_others(list: &Path, subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::AutoloadFile;
    let directory = list.parent().unwrap_or(Path::new("/"));
    for place in [list, directory] {
        let Ok(found) = fs::metadata(place) else { continue };
        let (shown, user) = (place.display(), osqueryd_user(subject));
        if ![0, user].contains(&found.uid()) {
            report.warn(
                CHECK,
                format!("{shown} belongs to user {}, who can so add a line, which root runs", found.uid()),
                format!("chown root:root {shown}"),
            );
        } else if let Some(who) = writers(&found) {
            report.warn(
                CHECK,
                format!("{shown} is writable by {who}, and a line added there makes root run a program"),
                format!("chmod go-w {shown}"),
            );
        }
    }
}

/// The paths that a list names, those in its directories too.
fn paths(text: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        match Path::new(line).is_dir() {
            true => list(Path::new(line), &mut paths),
            false => paths.push(line.into()),
        }
    }
    // A path that is named twice is started once.
    paths.sort();
    paths.dedup();
    paths
}

/// All files in a directory and below it.
fn list(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), paths),
            _ => paths.push(entry.path()),
        }
    }
}

/// Whether a path is the extension's: by its name, or since it is the file that runs here.
fn is_ours(path: &Path, own: Option<&Path>) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| files::identity(&file));
    let named = path.file_name().is_some_and(|name| name.to_string_lossy().replace('-', "_").contains("remote_tls"));
    named || own.is_some_and(|own| identity(own).is_some() && identity(own) == identity(path))
}
