//! The list of extensions that osqueryd starts, and osqueryd's rules for their files.
//!
//! The rules are those of osquery's `loadExtensions` and `safePermissions`: a path that breaks one is passed over with
//! a warning in osqueryd's log, and osqueryd then ends for want of its plugins.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Check, Level, Report, Subject};

/// Where the extension is installed.
const USUAL_PLACE: &str = "/usr/lib/osquery-remote-tls/remote_tls.ext";

/// Where osqueryd looks unless told otherwise.
const DEFAULT_AUTOLOAD: &str = "/etc/osquery/extensions.load";

const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const OWNER_EXECUTES: u32 = 0o100;

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    let list = PathBuf::from(subject.text("extensions_autoload", DEFAULT_AUTOLOAD));
    match ours(&list, subject, report) {
        Some(path) => extension(&path, subject, report),
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
                format!("{shown} is writable by {who}: whoever adds a line has root run it"),
                format!("chmod go-w {shown}"),
            );
        }
    }
    if report.is_clean(CHECK) {
        report.ok(CHECK, format!("{shown} names {}", path.display()));
    }
    Some(path.clone())
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
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let named = path.file_name().is_some_and(|name| name.to_string_lossy().replace('-', "_").contains("remote_tls"));
    named || own.is_some_and(|own| identity(own).is_some() && identity(own) == identity(path))
}

fn extension(path: &Path, subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::ExtensionFile;
    let shown = path.display();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (file, directory) = match (fs::metadata(path), fs::metadata(parent)) {
        (Ok(file), Ok(directory)) => (file, directory),
        (Err(error), _) | (_, Err(error)) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => format!("install the extension there: install -o root -m 0755 FILE {shown}"),
                _ => "run the doctor as root".to_owned(),
            };
            report.fail(CHECK, format!("{shown}: {error}"), remedy);
            return;
        }
    };
    if path.extension().is_none_or(|ending| ending != "ext") {
        report.fail(
            CHECK,
            format!("{shown} does not end in .ext: osqueryd does not start it"),
            format!("rename it to {}, in the autoload file too", path.with_extension("ext").display()),
        );
    }
    if !file.is_file() {
        report.fail(CHECK, format!("{shown} is no file"), "name the extension's file in the autoload file");
    }
    let user = osqueryd_user(subject);
    for (what, remedy) in broken_rules(path, parent, &file, &directory, user) {
        if subject.is_set("allow_unsafe") {
            report.problem(
                CHECK,
                Level::Warning,
                format!("{what}; only --allow_unsafe lets osqueryd start it"),
                remedy,
                Vec::new(),
            );
        } else {
            report.fail(CHECK, format!("{what}: osqueryd does not start it"), remedy);
        }
    }
    for (place, found) in [(path, &file), (parent, &directory)] {
        // A file that others write to has been told of.
        let told = found.is_file() && found.mode() & OTHERS_WRITE != 0;
        if let Some(who) = writers(found).filter(|_| !told) {
            report.warn(
                CHECK,
                format!("{} is writable by {who}, who can so have osqueryd's user run anything", place.display()),
                format!("chmod go-w {}", place.display()),
            );
        }
    }
    if report.is_clean(CHECK) {
        report.ok(CHECK, format!("{shown} has the owner, the mode and the place that osqueryd wants"));
    }
}

/// Who else can write to a file or put one into a directory's place.
fn writers(found: &Metadata) -> Option<&'static str> {
    let sticky = found.is_dir() && found.mode() & STICKY != 0;
    match found.mode() {
        _ if sticky => None,
        mode if mode & OTHERS_WRITE != 0 => Some("everybody"),
        mode if mode & GROUP_WRITES != 0 && found.gid() != 0 => Some("its group"),
        _ => None,
    }
}

/// The permissions that osqueryd refuses: what is wrong, and what to do.
fn broken_rules(path: &Path, parent: &Path, file: &Metadata, directory: &Metadata, user: u32) -> Vec<(String, String)> {
    let (shown, mode) = (path.display(), file.mode());
    let mut broken = Vec::new();
    if directory.mode() & STICKY != 0 {
        broken.push((
            format!("{shown} lies in a directory with the sticky bit ({}), like /tmp", parent.display()),
            "install it into a directory of root's, such as /usr/lib/osquery-remote-tls".to_owned(),
        ));
    }
    if ![0, user].contains(&file.uid()) {
        broken.push((
            format!("{shown} belongs to user {}, neither root nor osqueryd's user ({user})", file.uid()),
            format!("chown root:root {shown}"),
        ));
    }
    if mode & OTHERS_WRITE != 0 {
        broken.push((format!("{shown} is writable by everybody"), format!("chmod o-w {shown}")));
    }
    if mode & OWNER_EXECUTES == 0 {
        broken.push((format!("{shown} is not executable by its owner"), format!("chmod 0755 {shown}")));
    }
    broken
}

/// The user that osqueryd runs as: the owner of its socket, else whoever runs this.
fn osqueryd_user(subject: &Subject) -> u32 {
    fs::metadata(&subject.socket).map_or_else(|_| rustix::process::geteuid().as_raw(), |socket| socket.uid())
}
