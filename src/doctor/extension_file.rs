//! osqueryd's rules for the extension's file, and what the kernel wants of it.
//!
//! The rules are those of osquery's `loadExtensions` and `safePermissions`: a path that breaks one is passed over with
//! a warning in osqueryd's log, and osqueryd then ends for want of its plugins.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::subject::Subject;
use super::{Check, Report};
use crate::files::our_user;
use crate::platform::Places;
use crate::platform::{self, Fit, HEAD};

/// Where the extension is installed.
pub(super) const USUAL_PLACE: &str = Places::HERE.extension;

/// Where osqueryd looks unless told otherwise.
pub(super) const DEFAULT_AUTOLOAD: &str = Places::HERE.autoload;

const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const OWNER_EXECUTES: u32 = 0o100;

/// The file that the list names.
pub(super) fn check(path: &Path, subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::ExtensionFile;
    let shown = path.display();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (file, directory) = match (fs::metadata(path), fs::metadata(parent)) {
        (Ok(file), Ok(directory)) => (file, directory),
        (Err(error), _) | (_, Err(error)) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => missing(path),
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
    if file.is_file()
        && let Some((what, remedy)) = no_program(path)
    {
        report.fail(CHECK, format!("{shown} {what}: osqueryd can't start it"), remedy);
    }
    let user = osqueryd_user(subject);
    for (what, remedy) in broken_rules(path, parent, &file, &directory, user) {
        if subject.is_set("allow_unsafe") {
            report.warn(CHECK, format!("{what}; only --allow_unsafe lets osqueryd start it"), remedy);
        } else {
            report.fail(CHECK, format!("{what}: osqueryd does not start it"), remedy);
        }
    }
    let list = Path::new(subject.text("extensions_autoload", DEFAULT_AUTOLOAD));
    for (place, found) in [(path, &file), (parent, &directory)] {
        // A file that others write to has been told of, and so has the directory of the list.
        let told = found.is_file() && found.mode() & OTHERS_WRITE != 0 || list.parent() == Some(place);
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

/// What to do about a file that isn't there: the one beside it with the right ending is meant.
fn missing(path: &Path) -> String {
    let right = path.with_extension("ext");
    match right != path && right.is_file() {
        true => format!("{} is there, and meant: write that into the list of extensions", right.display()),
        false => format!("install the extension there: install -o root -m 0755 FILE {}", path.display()),
    }
}

/// Why the kernel won't run it, and what to do.
fn no_program(path: &Path) -> Option<(String, String)> {
    let shown = path.display();
    if platform::is_on_noexec(path) {
        let remedy =
            format!("install it elsewhere, such as {}, or mount that file system without noexec", usual_directory());
        return Some(("lies on a file system that is mounted noexec".to_owned(), remedy));
    }
    let remedy = || format!("install the extension anew: install -o root -m 0755 FILE {shown}");
    let found = head(path)?;
    if found.is_empty() {
        return Some(("is empty".to_owned(), remedy()));
    }
    let own = std::env::current_exe().ok().and_then(|own| head(&own))?;
    match platform::fit(&found, &own) {
        Fit::Runs => None,
        Fit::NoProgram => Some(("is no program".to_owned(), remedy())),
        Fit::OtherProcessor => {
            let remedy = format!("install the package for this host's processor ({})", std::env::consts::ARCH);
            Some(("is a program for another processor".to_owned(), remedy))
        }
    }
}

fn usual_directory() -> &'static str {
    USUAL_PLACE.rsplit_once('/').map_or(USUAL_PLACE, |(directory, _)| directory)
}

/// A file's first bytes; none when it can't be read.
fn head(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Who else can write to a file or put one into a directory's place.
pub(super) fn writers(found: &Metadata) -> Option<&'static str> {
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
            format!("install it into a directory of root's, such as {}", usual_directory()),
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

/// The user that osqueryd runs as: the owner of its socket, else the user that runs the doctor.
pub(super) fn osqueryd_user(subject: &Subject) -> u32 {
    fs::metadata(&subject.socket).map_or_else(|_| our_user(), |socket| socket.uid())
}
